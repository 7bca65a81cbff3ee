"""The driver API through ctypes, for tests that talk to the software GPU's library directly."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any

SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_READY = 600


class DriverError(Exception):
    """A driver function returned something else than CUDA_SUCCESS."""

    def __init__(self, name: str, result: int) -> None:
        super().__init__(f"{name} returned {result}")
        self.result = result


class Driver:
    """`driver.cuX(...)` raises DriverError; `driver.result.cuX(...)` returns the result."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.result: Any = _Results(self.library)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.library, name)

        def checked(*arguments: Any) -> None:
            result = function(*[_adapt(argument) for argument in arguments])
            if result != SUCCESS:
                raise DriverError(name, result)

        return checked

    def allocate(self, size: int) -> int:
        """Device memory."""
        address = c_uint64()
        self.cuMemAlloc_v2(byref(address), c_size_t(size))
        return address.value

    def handle(self, name: str, *arguments: Any) -> int:
        """Calls a function whose first parameter receives a handle, and returns that."""
        out = c_void_p()
        getattr(self, name)(byref(out), *arguments)
        return out.value or 0

    def upload(self, data: bytes) -> int:
        """Device memory that holds `data`."""
        address = self.allocate(len(data))
        self.cuMemcpyHtoD_v2(c_uint64(address), data, c_size_t(len(data)))
        return address

    def download(self, address: int, size: int) -> bytes:
        """What device memory holds."""
        buffer = ctypes.create_string_buffer(size)
        self.cuMemcpyDtoH_v2(buffer, c_uint64(address), c_size_t(size))
        return buffer.raw

    def module(self, ptx: str) -> int:
        """Loads PTX text."""
        return self.handle("cuModuleLoadData", c_char_p(ptx.encode()))

    def function(self, module: int, name: str) -> int:
        """A kernel of a module."""
        return self.handle("cuModuleGetFunction", c_void_p(module), c_char_p(name.encode()))

    def launch(
        self,
        function: int,
        grid: int,
        block: int,
        *parameters: Any,
        stream: int = 0,
        shared: int = 0,
    ) -> None:
        """Launches; parameters are ctypes values."""
        self.cuLaunchKernel(
            c_void_p(function),
            *(c_uint(number) for number in (grid, 1, 1, block, 1, 1, shared)),
            c_void_p(stream),
            pointers(*parameters),
            None,
        )


class _Results:
    """Functions as they are: the result is returned."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)
        return lambda *arguments: function(*[_adapt(argument) for argument in arguments])


def _adapt(argument: Any) -> Any:
    """Plain integers are passed as C's int; callers say c_uint64 or c_void_p for the rest."""
    return c_int(argument) if isinstance(argument, int) else argument


def pointers(*values: Any) -> Any:
    """An array of pointers to ctypes values, as kernelParams wants; it keeps them alive."""
    array: Any = (c_void_p * max(len(values), 1))()
    for i, value in enumerate(values):
        array[i] = ctypes.addressof(value)
    array.kept = values
    return array


HEADER = ".version 7.8\n.target sm_80\n.address_size 64\n"

# out[i] = a[i] * factor + i for i < n
SCALE = (
    HEADER
    + """
.visible .entry scale(.param .u64 out, .param .u64 a, .param .u32 factor, .param .u32 n)
{
  .reg .pred %p<2>;
  .reg .b32 %r<8>;
  .reg .b64 %d<6>;
  ld.param.u64 %d1, [out];
  ld.param.u64 %d2, [a];
  ld.param.u32 %r1, [factor];
  ld.param.u32 %r2, [n];
  mov.u32 %r3, %ctaid.x;
  mov.u32 %r4, %ntid.x;
  mov.u32 %r5, %tid.x;
  mad.lo.s32 %r6, %r3, %r4, %r5;
  setp.ge.u32 %p1, %r6, %r2;
  @%p1 bra done;
  mul.wide.u32 %d3, %r6, 4;
  add.s64 %d4, %d2, %d3;
  ld.global.u32 %r7, [%d4];
  mad.lo.s32 %r7, %r7, %r1, %r6;
  add.s64 %d5, %d1, %d3;
  st.global.u32 [%d5], %r7;
done:
  ret;
}
"""
)

# A variable with an initial value, and a kernel that adds to it.
COUNTER = (
    HEADER
    + """
.visible .global .align 4 .u32 counter = 5;
.visible .entry bump(.param .u32 by)
{
  .reg .b32 %r<3>;
  .reg .b64 %d<2>;
  ld.param.u32 %r1, [by];
  mov.u64 %d1, counter;
  atom.global.add.u32 %r2, [%d1], %r1;
  ret;
}
"""
)
