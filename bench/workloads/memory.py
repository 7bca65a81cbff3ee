"""Allocators: cuMemAlloc and cuMemFree, their stream-ordered forms, and pinned memory."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref, c_size_t, c_uint64, c_void_p
from functools import partial

from gpupool.bench.workloads.base import MEMORY, Result, Running, Setting, Workload, digest
from gpupool.bench.workloads.cuda import Driver, ready

_SIZE = 512 << 10
_BLOCKS = 8  # of 512 KiB to 4 MiB, in one turn of the loop


def _written(driver: Driver, allocate: Callable[[int], int], free: Callable[[int], None]) -> Result:
    """Blocks that live together do not share memory."""
    blocks = [allocate(_SIZE) for _ in range(4)]
    for number, block in enumerate(blocks):
        driver.upload(block, bytes([number + 1]) * _SIZE)
    found = b"".join(bytes(driver.download(block, _SIZE)) for block in blocks)
    for block in blocks:
        free(block)
    return digest(found)


def _synchronous(setting: Setting) -> Running:
    driver = ready()
    count = 2 if setting.small else 20
    allocate, release = driver.address("cuMemAlloc_v2"), driver.address("cuMemFree_v2")

    def step() -> None:
        driver.loops.run("bench_allocate", allocate, release, _SIZE, 0, count)

    def result() -> Result:
        return _written(driver, driver.alloc, driver.free)

    return Running(step, driver.wait, result, operations=count * _BLOCKS)


def _on_stream(setting: Setting) -> Running:
    driver = ready()
    count = 2 if setting.small else 20
    stream = driver.stream()
    handle = int(stream.value or 0)
    allocate, release = driver.address("cuMemAllocAsync"), driver.address("cuMemFreeAsync")

    def step() -> None:
        driver.loops.run("bench_allocate", allocate, release, _SIZE, handle, count)

    def one(size: int) -> int:
        address = c_uint64()
        driver.call("cuMemAllocAsync", byref(address), c_size_t(size), stream)
        driver.call("cuStreamSynchronize", stream)
        return address.value

    def free(address: int) -> None:
        driver.call("cuMemFreeAsync", address, stream)

    def close() -> None:
        driver.wait()
        driver.call("cuStreamDestroy_v2", stream)

    return Running(
        step, driver.wait, lambda: _written(driver, one, free), close, operations=count * _BLOCKS
    )


def _pinned(setting: Setting, size_mib: int) -> Running:
    driver = ready()
    size = (size_mib // 64 if setting.small else size_mib) << 20

    def step() -> None:
        pointer = c_void_p()
        driver.call("cuMemAllocHost_v2", byref(pointer), c_size_t(size))
        driver.call("cuMemFreeHost", pointer)

    def result() -> Result:
        return _written(driver, driver.alloc, driver.free)

    return Running(step, driver.wait, result)


WORKLOADS = (
    Workload("alloc_free", MEMORY, _synchronous),
    Workload("alloc_free_async", MEMORY, _on_stream),
    Workload("alloc_free_pinned_64MiB", MEMORY, partial(_pinned, size_mib=64)),
    # More than a client keeps: each time its pages are made, registered and given back.
    Workload("alloc_free_pinned_1GiB", MEMORY, partial(_pinned, size_mib=1024)),
)
