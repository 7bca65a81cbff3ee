"""The driver API through ctypes, for the programs that tests run on a vGPU.

Sizes are bytes. A call that must succeed goes through the Driver's own methods, which raise
CudaError; raw calls (`driver.lib.cuX(...)`) return the CUresult for tests that look at errors.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_SUPPORTED = 801
ALREADY_REGISTERED = 712
NOT_REGISTERED = 713
CAPTURE_UNSUPPORTED = 900
CAPTURE_INVALIDATED = 901
CAPTURE_IMPLICIT = 906

HOST, DEVICE, ARRAY, UNIFIED = 1, 2, 3, 4
NON_BLOCKING = 1


# add_one(data, n): adds 1 to each of n 32-bit integers.
ADD_ONE = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry add_one(.param .u64 data, .param .u32 n)
{
  .reg .pred %p;
  .reg .b32 %r<6>;
  .reg .b64 %d<4>;
  ld.param.u64 %d1, [data];
  ld.param.u32 %r1, [n];
  mov.u32 %r2, %ctaid.x;
  mov.u32 %r3, %ntid.x;
  mov.u32 %r4, %tid.x;
  mad.lo.s32 %r2, %r2, %r3, %r4;
  setp.ge.u32 %p, %r2, %r1;
  @%p bra done;
  cvta.to.global.u64 %d1, %d1;
  mul.wide.u32 %d2, %r2, 4;
  add.s64 %d3, %d1, %d2;
  ld.global.u32 %r5, [%d3];
  add.s32 %r5, %r5, 1;
  st.global.u32 [%d3], %r5;
done:
  ret;
}
"""


class CudaError(Exception):
    """A driver call that had to succeed did not."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} returned {code}")
        self.code = code


class Memcpy2D(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = (
        ("src_x", c_size_t), ("src_y", c_size_t), ("src_type", c_uint), ("src_host", c_void_p),
        ("src_device", c_uint64), ("src_array", c_void_p), ("src_pitch", c_size_t),
        ("dst_x", c_size_t), ("dst_y", c_size_t), ("dst_type", c_uint), ("dst_host", c_void_p),
        ("dst_device", c_uint64), ("dst_array", c_void_p), ("dst_pitch", c_size_t),
        ("width", c_size_t), ("height", c_size_t),
    )  # fmt: skip


class Memcpy3D(ctypes.Structure):
    """CUDA_MEMCPY3D."""

    _fields_ = (
        ("src_x", c_size_t), ("src_y", c_size_t), ("src_z", c_size_t), ("src_lod", c_size_t),
        ("src_type", c_uint), ("src_host", c_void_p), ("src_device", c_uint64),
        ("src_array", c_void_p), ("src_reserved", c_void_p),
        ("src_pitch", c_size_t), ("src_height", c_size_t),
        ("dst_x", c_size_t), ("dst_y", c_size_t), ("dst_z", c_size_t), ("dst_lod", c_size_t),
        ("dst_type", c_uint), ("dst_host", c_void_p), ("dst_device", c_uint64),
        ("dst_array", c_void_p), ("dst_reserved", c_void_p),
        ("dst_pitch", c_size_t), ("dst_height", c_size_t),
        ("width", c_size_t), ("height", c_size_t), ("depth", c_size_t),
    )  # fmt: skip


class Driver:
    """libcuda with the primary context of device 0 current."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        self.context = c_void_p()
        self.call("cuDevicePrimaryCtxRetain", byref(self.context), 0)
        self.call("cuCtxSetCurrent", self.context)

    def result(self, name: str, *arguments: object) -> int:
        """The CUresult of a call. Plain integers are passed as 64 bits."""
        wide = [c_uint64(each) if isinstance(each, int) else each for each in arguments]
        code: int = getattr(self.lib, name)(*wide)
        return code

    def call(self, name: str, *arguments: object) -> None:
        """Calls a function that must succeed."""
        code = self.result(name, *arguments)
        if code != SUCCESS:
            raise CudaError(name, code)

    def function(self, name: str) -> c_void_p:
        """A kernel of ADD_ONE, below."""
        module, function = c_void_p(), c_void_p()
        self.call("cuModuleLoadData", byref(module), ADD_ONE)
        self.call("cuModuleGetFunction", byref(function), module, name.encode())
        return function

    def launch(self, function: c_void_p, grid: int, block: int, *arguments: Any) -> None:
        """Launches a kernel on the default stream; every argument is a ctypes value."""
        places = (c_void_p * len(arguments))(*[ctypes.addressof(each) for each in arguments])
        self.call("cuLaunchKernel", function, grid, 1, 1, block, 1, 1, 0, None, places, None)

    def alloc(self, size: int) -> int:
        """Device memory."""
        address = c_uint64()
        self.call("cuMemAlloc_v2", byref(address), c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        """Frees device memory."""
        self.call("cuMemFree_v2", c_uint64(address))

    def pinned(self, size: int, flags: int = 0) -> int:
        """Pinned host memory."""
        pointer = c_void_p()
        self.call("cuMemHostAlloc", byref(pointer), c_size_t(size), c_uint(flags))
        assert pointer.value is not None
        return pointer.value

    def stream(self, flags: int = NON_BLOCKING) -> c_void_p:
        """A new stream."""
        stream = c_void_p()
        self.call("cuStreamCreate", byref(stream), c_uint(flags))
        return stream

    def upload(self, address: int, data: bytes) -> None:
        """Synchronous copy from pageable memory."""
        self.call("cuMemcpyHtoD_v2", c_uint64(address), data, c_size_t(len(data)))

    def download(self, address: int, size: int) -> bytes:
        """Synchronous copy to pageable memory that held other bytes before."""
        target = ctypes.create_string_buffer(b"\xa5" * size, size)
        self.call("cuMemcpyDtoH_v2", target, c_uint64(address), c_size_t(size))
        return target.raw

    def attribute(self, attribute: int, pointer: int) -> int:
        """cuPointerGetAttribute, as a 64-bit value."""
        value = c_uint64()
        self.call("cuPointerGetAttribute", byref(value), c_int(attribute), c_uint64(pointer))
        return value.value

    def synchronize(self) -> None:
        """cuCtxSynchronize."""
        self.call("cuCtxSynchronize")


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes in which neighbouring chunks differ: a copy to the wrong place is noticed."""
    block = os.urandom(65521)  # a prime, so that it never lines up with a chunk
    rotated = block[seed % 65521 :] + block[: seed % 65521]
    return (rotated * (size // len(rotated) + 1))[:size]


def write_host(address: int, data: bytes) -> None:
    """Writes to host memory by address."""
    ctypes.memmove(address, data, len(data))


def read_host(address: int, size: int) -> bytes:
    """Reads host memory by address."""
    return ctypes.string_at(address, size)
