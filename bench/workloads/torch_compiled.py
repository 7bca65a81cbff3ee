"""Kernels made at run time: torch.compile, a Triton kernel, and a CUDA graph of PyTorch's."""

from __future__ import annotations

from typing import Any

from gpupool.bench.workloads.base import GPU, LAUNCH, Running, Setting, UnavailableError, Workload
from gpupool.bench.workloads.torch_tools import Torch


def _fused(setting: Setting) -> Running:
    t = Torch(setting)
    torch = t.torch

    @torch.compile
    def fused(x: Any) -> Any:
        return torch.softmax(torch.sin(x) * 2 + torch.cos(x), -1)

    size = 32 if setting.small else 1024
    x = t.random(size, size)
    return t.running(lambda: fused(x), lambda: fused(x))


def _triton(setting: Setting) -> Running:
    t = Torch(setting, only_gpu=True)
    try:
        from gpupool.bench.workloads.triton_kernel import scale_and_add
    except ImportError as error:
        raise UnavailableError(f"Triton is not installed ({error})") from error
    x, y = t.random(1 << 16), t.random(1 << 16)
    out = t.torch.empty_like(x)
    count = 2 if setting.small else 50

    def step() -> None:
        for _ in range(count):
            scale_and_add[(64,)](x, y, out, 1 << 16, 1024)

    return t.running(step, lambda: out, operations=count)


def _graph(setting: Setting) -> Running:
    """Fifty linear layers, replayed."""
    t = Torch(setting, only_gpu=True)
    torch = t.torch
    torch.manual_seed(1)
    net = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(50)]).to(t.device)
    x = t.random(32, 256)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        net(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = net(x)

    def result() -> object:
        out.zero_()
        graph.replay()
        with torch.no_grad():
            torch.testing.assert_close(out, net(x), rtol=1e-3, atol=1e-4)
        return out

    return t.running(graph.replay, result)


WORKLOADS = (
    Workload("torch_compile_softmax", LAUNCH, _fused, 1e-3, "torch", native_first=True),
    Workload("triton_kernel", LAUNCH, _triton, 1e-5, "torch", native_first=True),
    Workload("torch_graph_50_layers", GPU, _graph, 1e-3, "torch"),
)
