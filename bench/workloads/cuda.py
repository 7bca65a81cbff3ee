"""The driver API through ctypes, on whatever libcuda.so.1 the process finds.

Sizes are bytes. Calls that fail raise CudaError. Repeated calls go through `Loops` (C++).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import byref, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import lru_cache
from pathlib import Path

from gpupool.bench.workloads.base import UnavailableError

NON_BLOCKING = 1

# count(data): one atomic addition a thread, so that lost or repeated launches show.
# work(data, n): n dependent multiply-adds a thread, bound by the GPU.
PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry count(.param .u64 data)
{
  .reg .b32 %r<2>;
  .reg .b64 %d<2>;
  ld.param.u64 %d1, [data];
  cvta.to.global.u64 %d1, %d1;
  atom.global.add.u32 %r1, [%d1], 1;
  ret;
}
.visible .entry work(.param .u64 data, .param .u32 n)
{
  .reg .pred %p;
  .reg .b32 %r<6>;
  .reg .b64 %d<4>;
  .reg .f32 %f<3>;
  ld.param.u64 %d1, [data];
  ld.param.u32 %r5, [n];
  mov.u32 %r2, %ctaid.x;
  mov.u32 %r3, %ntid.x;
  mov.u32 %r4, %tid.x;
  mad.lo.s32 %r2, %r2, %r3, %r4;
  cvta.to.global.u64 %d1, %d1;
  mul.wide.u32 %d2, %r2, 4;
  add.s64 %d3, %d1, %d2;
  cvt.rn.f32.u32 %f1, %r2;
again:
  fma.rn.f32 %f1, %f1, 0f3F7FF000, 0f3F800000;
  sub.u32 %r5, %r5, 1;
  setp.ne.u32 %p, %r5, 0;
  @%p bra again;
  st.global.f32 [%d3], %f1;
  ret;
}
"""


class CudaError(Exception):
    """A driver call did not succeed."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} returned {code}")
        self.code = code


class Loops:
    """The C++ loops; they take addresses of functions."""

    def __init__(self) -> None:
        path = os.environ.get("GPUPOOL_BENCH_LOOPS", "")
        if not path:
            raise UnavailableError("libgpupool-bench-loops.so was not built")
        self._library = ctypes.CDLL(path)

    def run(self, name: str, *arguments: object) -> None:
        """Calls a loop. Integers are passed as 64 bits."""
        wide = [c_uint64(each) if isinstance(each, int) else each for each in arguments]
        code: int = getattr(self._library, name)(*wide)
        if code != 0:
            raise CudaError(name, code)


class Driver:
    """libcuda with the primary context of device 0 current. One a process: see `driver()`."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", c_uint(0))
        self.context = c_void_p()
        self.call("cuDevicePrimaryCtxRetain", byref(self.context), c_int(0))
        self.use()
        self.loops = Loops()

    def use(self) -> None:
        """Makes the context current in this thread; frameworks may have changed that."""
        self.call("cuCtxSetCurrent", self.context)

    def call(self, name: str, *arguments: object) -> None:
        """Calls a function that must succeed. Plain integers are passed as 64 bits."""
        wide = [c_uint64(each) if isinstance(each, int) else each for each in arguments]
        code: int = getattr(self.library, name)(*wide)
        if code != 0:
            raise CudaError(name, code)

    def address(self, name: str) -> c_void_p:
        """Where a function is, for the loops."""
        return ctypes.cast(getattr(self.library, name), c_void_p)

    def module(self, image: bytes = PTX) -> c_void_p:
        """Loads PTX."""
        module = c_void_p()
        self.call("cuModuleLoadData", byref(module), image)
        return module

    def function(self, module: c_void_p, name: str) -> c_void_p:
        """A kernel."""
        function = c_void_p()
        self.call("cuModuleGetFunction", byref(function), module, name.encode())
        return function

    def alloc(self, size: int) -> int:
        """Device memory, zeroed."""
        address = c_uint64()
        self.call("cuMemAlloc_v2", byref(address), c_size_t(size))
        self.call("cuMemsetD8_v2", address, c_uint(0), c_size_t(size))
        self.wait()  # streams that do not block would not wait for it
        return address.value

    def free(self, *addresses: int) -> None:
        """Frees device memory."""
        for each in addresses:
            self.call("cuMemFree_v2", each)

    def stream(self) -> c_void_p:
        """A new stream."""
        stream = c_void_p()
        self.call("cuStreamCreate", byref(stream), c_uint(NON_BLOCKING))
        return stream

    def event(self) -> c_void_p:
        """A new event, with timing."""
        event = c_void_p()
        self.call("cuEventCreate", byref(event), c_uint(0))
        return event

    def wait(self) -> None:
        """Everything in the context is done."""
        self.call("cuCtxSynchronize")

    def download(self, address: int, size: int) -> bytearray:
        """Bytes of device memory."""
        data = bytearray(size)
        place = (ctypes.c_char * size).from_buffer(data)
        self.call("cuMemcpyDtoH_v2", place, address, size)
        return data

    def upload(self, address: int, data: bytes | bytearray) -> None:
        """Fills device memory."""
        place = (ctypes.c_char * len(data)).from_buffer_copy(data)
        self.call("cuMemcpyHtoD_v2", address, place, len(data))

    def elapsed_ms(self, start: c_void_p, end: c_void_p) -> float:
        """Between two events."""
        took = c_float()
        self.call("cuEventElapsedTime", byref(took), start, end)
        return took.value

    def number(self, address: int) -> int:
        """A 32-bit number of device memory."""
        return int.from_bytes(self.download(address, 4), "little")

    def set_number(self, address: int, value: int) -> None:
        """Writes one."""
        self.call("cuMemsetD32_v2", address, c_uint(value), 1)


@lru_cache(maxsize=1)
def driver() -> Driver:
    """The process's driver."""
    return Driver()


def ready() -> Driver:
    """The process's driver, its context current in this thread."""
    one = driver()
    one.use()
    return one


def arguments(values: Sequence[ctypes.c_uint64 | ctypes.c_uint]) -> ctypes.Array[c_void_p]:
    """A kernel's arguments; the caller keeps the values alive."""
    return (c_void_p * len(values))(*[ctypes.addressof(each) for each in values])


def describe() -> dict[str, str]:
    """Which driver this process has, and its device 0."""
    one = ready()
    version, name = c_int(), ctypes.create_string_buffer(256)
    one.call("cuDriverGetVersion", byref(version))
    one.call("cuDeviceGetName", name, c_int(256), c_int(0))
    maps = Path("/proc/self/maps").read_text().splitlines()
    library = next((line.split()[-1] for line in maps if "/libcuda" in line), "")
    return {
        "device": name.value.decode(),
        "cuda_driver_version": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "libcuda": library,
    }
