"""CuPy: a kernel of its own making, and a product of matrices with its norm read."""

from __future__ import annotations

from typing import Any

from gpupool.bench.workloads.base import (
    ITEM,
    LAUNCH,
    Result,
    Running,
    Setting,
    UnavailableError,
    Workload,
)


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise UnavailableError(f"CuPy is not installed ({error})") from error
    return cupy


def _values(array: Any) -> Result:
    flat = array.get().reshape(-1)
    return Result(values=tuple(float(each) for each in flat[:: max(1, flat.size // 256)]))


def _elementwise(setting: Setting) -> Running:
    cupy = _cupy()
    kernel = cupy.ElementwiseKernel(
        "float32 x, float32 y", "float32 z", "z = 2 * x + y", "bench_axpy"
    )
    x = cupy.arange(1 << 12, dtype=cupy.float32)
    y, z = cupy.ones_like(x), cupy.empty_like(x)
    count = 5 if setting.small else 100

    def step() -> None:
        for _ in range(count):
            kernel(x, y, z)

    wait = cupy.cuda.get_current_stream().synchronize
    return Running(step, wait, lambda: _values(z), operations=count)


def _norm(setting: Setting) -> Running:
    cupy = _cupy()
    size = 32 if setting.small else 1024
    a = cupy.arange(size * size, dtype=cupy.float32).reshape(size, size) / (size * size)

    def step() -> float:
        return float((a * a).sum())

    wait = cupy.cuda.get_current_stream().synchronize
    return Running(step, wait, lambda: Result(values=(step(),)))


WORKLOADS = (
    Workload("cupy_elementwise", LAUNCH, _elementwise, 0.0, "cupy"),
    Workload("cupy_sum_item", ITEM, _norm, 1e-5, "cupy"),
)
