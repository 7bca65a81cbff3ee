"""Seven of NVIDIA's libraries, each against PyTorch on the CPU: a check rather than a measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpupool.bench.workloads.base import MODEL, Running, Setting, Workload, WrongResultError
from gpupool.bench.workloads.torch_tools import Torch


def _libraries(setting: Setting) -> Running:
    """cuBLAS, cuFFT, cuSOLVER, sorting, cuDNN, cuSPARSE, random numbers."""
    t = Torch(setting)
    torch = t.torch
    size = 32 if setting.small else 512
    a, b = torch.randn(size, size), torch.randn(size, size)
    sparse = (a * (a > 1)).to_sparse_csr()
    there_a, there_b, there_sparse = a.to(t.device), b.to(t.device), sparse.to(t.device)

    def conv(x: Any, kernel: Any) -> Any:
        return torch.nn.functional.conv2d(x[None, None], kernel[None, None, :7, :7])

    # What is done there, what the CPU says to it, how far they may be apart.
    work: dict[str, tuple[Callable[[], Any], Any, float]] = {
        "matmul": (lambda: there_a @ there_b, a @ b, 1e-2),
        "fft": (lambda: torch.fft.fft(there_a), torch.fft.fft(a), 1e-3),
        "svd": (lambda: torch.linalg.svdvals(there_a), torch.linalg.svdvals(a), 1e-2),
        "sort": (lambda: torch.sort(there_a.flatten())[0], torch.sort(a.flatten())[0], 0.0),
        "conv": (lambda: conv(there_a, there_b), conv(a, b), 0.1),
        "spmm": (lambda: there_sparse @ there_b, sparse @ b, 1e-2),
        "rand": (
            lambda: torch.rand(1000000, device=t.device).mean(),
            torch.tensor(0.5),
            0.01,
        ),
    }

    def step() -> None:
        for make, _, _ in work.values():
            make()

    def result() -> object:
        for name, (make, expected, limit) in work.items():
            off = float((make().cpu() - expected).abs().max())
            if not off <= limit:
                raise WrongResultError(f"{name} is off by {off}, allowed is {limit}")
        return work["sort"][0]()

    return t.running(step, result)


WORKLOADS = (Workload("libraries", MODEL, _libraries, 0.0, "torch", duration_factor=2),)
