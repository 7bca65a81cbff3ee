"""Copies of 4 bytes to 1 GiB, pinned and pageable, to the device and back.

Pinned ones are asynchronous on a stream, pageable ones synchronous: how programs use them. Each
step copies the same bytes; what arrived is compared with native afterwards.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from ctypes import byref, c_size_t, c_uint, c_void_p

from gpupool.bench.workloads.base import (
    PAGEABLE,
    PINNED,
    SMALL_COPY,
    Result,
    Running,
    Setting,
    Workload,
    WrongResultError,
    digest,
)
from gpupool.bench.workloads.cuda import Driver, ready

_KIB, _MIB = 1 << 10, 1 << 20
_SIZES = {
    "4B": 4,
    "4KiB": 4 * _KIB,
    "64KiB": 64 * _KIB,
    "1MiB": _MIB,
    "64MiB": 64 * _MIB,
    "1GiB": 1024 * _MIB,
}
_SMALL_LIMIT = 2 * _MIB  # of the software GPU's form
_SMALL_COPY_LIMIT = 64 * _KIB
_PIECE = random.Random(4).randbytes(_MIB)  # noqa: S311 (a pattern, not a secret)

Bytes = ctypes.Array[ctypes.c_char]


def fill(place: Bytes, size: int) -> None:
    """A pattern in which every MiB is another."""
    view = memoryview(place).cast("B")
    for start in range(0, size, _MIB):
        piece = (start // _MIB + 1).to_bytes(4, "big") + _PIECE[4:]
        view[start : start + _MIB] = piece[: min(_MIB, size - start)]


class Buffers:
    """One buffer on each side, and how to give them back."""

    def __init__(self, driver: Driver, size: int, pinned: bool) -> None:
        self.driver, self.size = driver, size
        self._pinned = c_void_p()
        if pinned:
            driver.call("cuMemHostAlloc", byref(self._pinned), c_size_t(size), c_uint(0))
            self.host = (ctypes.c_char * size).from_address(int(self._pinned.value or 0))
        else:
            self.host = (ctypes.c_char * size).from_buffer(bytearray(size))
        self.device = driver.alloc(size)

    def close(self) -> None:
        """Frees both."""
        self.driver.wait()
        self.driver.free(self.device)
        if self._pinned.value:
            self.driver.call("cuMemFreeHost", self._pinned)


def _copy(size: int, pinned: bool, to_device: bool) -> Callable[[Setting], Running]:
    def make(setting: Setting) -> Running:
        driver = ready()
        length = min(size, _SMALL_LIMIT) if setting.small else size
        buffers = Buffers(driver, length, pinned)
        fill(buffers.host, length)
        if not to_device:
            driver.call("cuMemcpyHtoD_v2", buffers.device, buffers.host, length)
            ctypes.memset(buffers.host, 0, length)
        stream = driver.stream() if pinned else c_void_p()
        name = ("cuMemcpyHtoD" if to_device else "cuMemcpyDtoH") + ("Async_v2" if pinned else "_v2")
        ends = (buffers.device, buffers.host) if to_device else (buffers.host, buffers.device)
        # Short copies in a loop of C++, so that Python is not what is timed.
        count = 100 if length <= _SMALL_COPY_LIMIT and not setting.small else 1
        call = driver.address(name)

        def step() -> None:
            driver.loops.run("bench_repeat", call, *ends, length, stream, count)

        def result() -> Result:
            driver.wait()
            if not to_device:
                return _not_zero(buffers.host)
            return digest(driver.download(buffers.device, length))

        def close() -> None:
            buffers.close()
            if pinned:
                driver.call("cuStreamDestroy_v2", stream)

        return Running(step, driver.wait, result, close, operations=count, bytes_moved=length)

    return make


def _not_zero(place: Bytes) -> Result:
    """A digest of what arrived, which must not be the zeros from before."""
    view = memoryview(place).cast("B")
    if not any(view[-4:]):
        raise WrongResultError("the end of the buffer did not arrive")
    return digest(place)


def _row_class(size: int, pinned: bool) -> str:
    if size <= _SMALL_COPY_LIMIT:
        return SMALL_COPY
    return PINNED if pinned else PAGEABLE


WORKLOADS = tuple(
    Workload(
        f"{'h2d' if to_device else 'd2h'}_{'pinned' if pinned else 'pageable'}_{name}",
        _row_class(size, pinned),
        _copy(size, pinned, to_device),
    )
    for pinned in (False, True)
    for to_device in (True, False)
    for name, size in _SIZES.items()
)
