"""PyTorch workloads, timed on whatever libcuda.so.1 the process finds.

Native and forwarded run the same file. Prints one line a figure and, with --json FILE, writes them
all. `X` is the time of one iteration with the final synchronisation, `X.issue` what the program's
own thread spent; both in milliseconds. A workload that fails is named on stderr and makes the exit
code 1; so does a wrong result of `check`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

START = time.perf_counter()
import torch  # noqa: E402 - its import time is one of the figures

Step = Callable[[], object]


class Recorder:
    """Collects figures and failures."""

    def __init__(self, wanted: set[str]) -> None:
        self.figures: dict[str, float] = {}
        self.failures: list[str] = []
        self._wanted = wanted

    def wants(self, name: str) -> bool:
        """Whether this workload was asked for."""
        return not self._wanted or name in self._wanted

    def record(self, name: str, value: float) -> None:
        """Notes one figure and shows it."""
        self.figures[name] = value
        print(f"{name:32s} {value:14.5f}", flush=True)

    def fail(self, name: str, error: object) -> None:
        """Notes that a workload failed."""
        self.failures.append(name)
        print(f"{name}: FAILED: {error!r}"[:400], file=sys.stderr, flush=True)

    def bench(self, name: str, make: Callable[[], Step], iterations: int) -> None:
        """Times `iterations` calls of the step that `make` builds, after three to warm up."""
        if not self.wants(name):
            return
        try:
            step = make()
            for _ in range(3):
                step()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(iterations):
                step()
            issued = time.perf_counter() - begin
            torch.cuda.synchronize()
            total = time.perf_counter() - begin
        except Exception as error:
            self.fail(name, error)
            return
        self.record(name, total / iterations * 1e3)
        self.record(name + ".issue", issued / iterations * 1e3)


def small(recorder: Recorder) -> None:
    """Launches, synchronisations and copies."""
    a = torch.ones(64, device="cuda")
    recorder.bench("launch_add_small", lambda: lambda: a.add_(1), 20000)
    recorder.bench("sync_item", lambda: lambda: a[0].item(), 2000)
    recorder.bench("sync_empty", lambda: torch.cuda.synchronize, 5000)
    host = torch.empty(64 << 20, dtype=torch.uint8).random_(0, 255)
    device = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    recorder.bench("h2d_pageable_64M", lambda: lambda: device.copy_(host), 10)
    recorder.bench("d2h_pageable_64M", lambda: lambda: host.copy_(device), 10)
    if recorder.wants("h2d_pinned_64M") or recorder.wants("d2h_pinned_64M"):
        pinned = host.pin_memory()
        recorder.bench(
            "h2d_pinned_64M", lambda: lambda: device.copy_(pinned, non_blocking=True), 20
        )
        recorder.bench(
            "d2h_pinned_64M", lambda: lambda: pinned.copy_(device, non_blocking=True), 20
        )
    host4, device4 = torch.empty(1024), torch.empty(1024, device="cuda")
    recorder.bench("h2d_pageable_4K", lambda: lambda: device4.copy_(host4), 2000)
    recorder.bench("d2h_pageable_4K", lambda: lambda: host4.copy_(device4), 2000)
    m = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    recorder.bench("matmul4096_bf16", lambda: lambda: m @ m, 200)


def resnet_train() -> Step:
    """ResNet-50, batch 32, bf16 autocast; each step copies its input in and reads the loss."""
    import torchvision

    net = torchvision.models.resnet50().cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(32, 3, 224, 224), torch.randint(0, 1000, (32,))

    def step() -> float:
        x, y = images.cuda(non_blocking=True), labels.cuda(non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def resnet_infer() -> Step:
    """ResNet-50, one image, float32."""
    import torchvision

    net = torchvision.models.resnet50().cuda().eval()
    image = torch.randn(1, 3, 224, 224)

    def step() -> torch.Tensor:
        with torch.inference_mode():
            return net(image.cuda()).cpu()

    return step


def compiled() -> Step:
    """A fused softmax through torch.compile (Triton)."""

    @torch.compile
    def fused(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(torch.sin(x) * 2 + torch.cos(x), -1)

    x = torch.randn(1024, 1024, device="cuda")
    return lambda: fused(x)


def graphed() -> Step:
    """Fifty linear layers in one CUDA graph."""
    net = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(50)]).cuda()
    x = torch.randn(32, 256, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        net(x)
    torch.cuda.current_stream().wait_stream(side)
    expected = net(x).detach()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = net(x)
    graph.replay()
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-4)
    return graph.replay


def check(recorder: Recorder) -> None:
    """cuBLAS, cuFFT, cuSOLVER, cuSPARSE, cuDNN, sorting and random numbers against the CPU."""
    torch.manual_seed(1)
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    sparse = a * (a > 1)
    results: dict[str, tuple[Callable[[], float], float]] = {
        "matmul_err": (lambda: _off((a.cuda() @ b.cuda()).cpu(), a @ b), 1e-2),
        "fft_err": (lambda: _off(torch.fft.fft(a.cuda()).cpu(), torch.fft.fft(a)), 1e-3),
        "svd_err": (
            lambda: _off(torch.linalg.svdvals(a.cuda()).cpu(), torch.linalg.svdvals(a)),
            1e-2,
        ),
        "sort_err": (
            lambda: _off(torch.sort(a.flatten().cuda())[0].cpu(), torch.sort(a.flatten())[0]),
            0.0,
        ),
        "conv_err": (
            lambda: _off(
                torch.nn.functional.conv2d(
                    a[None, None].cuda(), b[None, None, :7, :7].cuda()
                ).cpu(),
                torch.nn.functional.conv2d(a[None, None], b[None, None, :7, :7]),
            ),
            0.1,
        ),
        "spmm_err": (
            lambda: _off((sparse.to_sparse_csr().cuda() @ b.cuda()).cpu(), sparse @ b),
            1e-2,
        ),
        "rand_off": (lambda: abs(torch.rand(1000000, device="cuda").mean().item() - 0.5), 0.01),
    }
    for name, (measure, limit) in results.items():
        try:
            value = measure()
        except Exception as error:
            recorder.fail(name, error)
            continue
        recorder.record(name, value)
        if not value <= limit:
            recorder.fail(name, f"{value} is above {limit}")


def _off(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max())


def main() -> int:
    """Runs the workloads; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="only these workloads; all when none is named")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    recorder = Recorder(set(arguments.names))
    recorder.record("import_torch_s", time.perf_counter() - START)
    begin = time.perf_counter()
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    recorder.record("cuda_init_s", time.perf_counter() - begin)
    small(recorder)
    recorder.bench("resnet50_train_b32", resnet_train, 20)
    recorder.bench("resnet50_infer_b1", resnet_infer, 50)
    recorder.bench("torch_compile", compiled, 500)
    recorder.bench("cuda_graph_50", graphed, 500)
    if recorder.wants("check"):
        check(recorder)
    recorder.record("total_s", time.perf_counter() - START)
    if arguments.json:
        arguments.json.write_text(json.dumps(recorder.figures))
    return 1 if recorder.failures else 0


if __name__ == "__main__":
    sys.exit(main())
