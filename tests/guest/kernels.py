"""Small kernels as PTX, and launching them through ctypes, for programs that run on a vGPU."""

from __future__ import annotations

import ctypes
from ctypes import addressof, byref, c_char, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

from tests.guest.cuda import Driver

NOT_FOUND = 500
INVALID_HANDLE = 400
INVALID_IMAGE = 200
INVALID_CLUSTER_SIZE = 912
LAUNCH_OUT_OF_RESOURCES = 701
COOPERATIVE_LAUNCH_TOO_LARGE = 720

PTX = b"""
.version 8.0
.target sm_80
.address_size 64

.visible .global .align 4 .u32 counter = 7;
.visible .const .align 8 .b8 table[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

// out[i] = value + c, for i < n
.visible .entry fill(.param .u64 out, .param .u32 n, .param .u32 value, .param .u8 c)
{
  .reg .pred %p<2>;
  .reg .b32 %r<8>;
  .reg .b64 %rd<5>;
  ld.param.u64 %rd1, [out];
  ld.param.u32 %r1, [n];
  ld.param.u32 %r2, [value];
  ld.param.u8 %r3, [c];
  mov.u32 %r4, %ctaid.x;
  mov.u32 %r5, %ntid.x;
  mov.u32 %r6, %tid.x;
  mad.lo.s32 %r7, %r4, %r5, %r6;
  setp.ge.u32 %p1, %r7, %r1;
  @%p1 bra done;
  cvta.to.global.u64 %rd2, %rd1;
  mul.wide.u32 %rd3, %r7, 4;
  add.s64 %rd4, %rd2, %rd3;
  add.s32 %r2, %r2, %r3;
  st.global.u32 [%rd4], %r2;
done:
  ret;
}

// out[i] = blob[i], for the 256 32-bit words of a parameter that needs alignment 64
.visible .entry words(.param .u32 before, .param .align 64 .b8 blob[1024], .param .u64 out)
{
  .reg .b32 %r<4>;
  .reg .b64 %rd<7>;
  ld.param.u64 %rd1, [out];
  cvta.to.global.u64 %rd2, %rd1;
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd3, %r1, 4;
  mov.b64 %rd4, blob;
  add.s64 %rd5, %rd4, %rd3;
  ld.param.u32 %r2, [%rd5];
  add.s64 %rd6, %rd2, %rd3;
  st.global.u32 [%rd6], %r2;
  ret;
}

// out[0] = counter, counter += 1
.visible .entry count(.param .u64 out)
{
  .reg .b32 %r<3>;
  .reg .b64 %rd<3>;
  ld.param.u64 %rd1, [out];
  cvta.to.global.u64 %rd2, %rd1;
  ld.global.u32 %r1, [counter];
  st.global.u32 [%rd2], %r1;
  add.s32 %r2, %r1, 1;
  st.global.u32 [counter], %r2;
  ret;
}

.visible .entry shared_16k(.param .u64 out)
{
  .shared .align 4 .b8 area[16384];
  .reg .b32 %r<3>;
  .reg .b64 %rd<3>;
  ld.param.u64 %rd1, [out];
  cvta.to.global.u64 %rd2, %rd1;
  mov.u32 %r1, 5;
  st.shared.u32 [area], %r1;
  ld.shared.u32 %r2, [area];
  st.global.u32 [%rd2], %r2;
  ret;
}

.visible .entry at_most_128() .maxntid 128, 1, 1
{
  ret;
}

.visible .entry nothing()
{
  ret;
}
"""
NAMES = ("fill", "words", "count", "shared_16k", "at_most_128", "nothing")


def load_module(driver: Driver, image: bytes = PTX) -> c_void_p:
    """A module of the current context."""
    module = c_void_p()
    driver.call("cuModuleLoadData", byref(module), image)
    return module


def load_library(driver: Driver, image: bytes = PTX) -> c_void_p:
    """A library."""
    library = c_void_p()
    driver.call("cuLibraryLoadData", byref(library), image, None, None, 0, None, None, 0)
    return library


def get_function(driver: Driver, module: c_void_p, name: str) -> c_void_p:
    """A function of a module."""
    function = c_void_p()
    driver.call("cuModuleGetFunction", byref(function), module, name.encode())
    return function


def get_kernel(driver: Driver, library: c_void_p, name: str) -> c_void_p:
    """A kernel of a library."""
    kernel = c_void_p()
    driver.call("cuLibraryGetKernel", byref(kernel), library, name.encode())
    return kernel


class Parameters:
    """kernelParams for ctypes values, which stay alive with it."""

    def __init__(self, *values: Any) -> None:
        self.values = values
        self.pointers = (c_void_p * max(1, len(values)))(*[addressof(value) for value in values])


def fill_parameters(out: int, count: int, value: int, more: int = 0) -> Parameters:
    """The parameters of `fill`."""
    return Parameters(c_uint64(out), c_uint(count), c_uint(value), ctypes.c_uint8(more))


class Extra:
    """The `extra` list for a packed buffer."""

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self.data = ctypes.create_string_buffer(data, max(1, len(data)))
        self.size = c_size_t(len(data) if size is None else size)
        self.pointers = (c_void_p * 5)(1, addressof(self.data), 2, addressof(self.size), None)


def launch(
    driver: Driver,
    function: c_void_p,
    grid: tuple[int, int, int] = (1, 1, 1),
    block: tuple[int, int, int] = (1, 1, 1),
    parameters: Parameters | None = None,
    extra: Extra | None = None,
    shared: int = 0,
    stream: c_void_p | None = None,
) -> int:
    """cuLaunchKernel; its result."""
    result: int = driver.lib.cuLaunchKernel(
        function, *[c_uint(each) for each in (*grid, *block)], c_uint(shared), stream,
        parameters.pointers if parameters else None, extra.pointers if extra else None,
    )  # fmt: skip
    return result


class Dim(ctypes.Structure):
    """Three numbers."""

    _fields_ = (("x", c_uint), ("y", c_uint), ("z", c_uint))


class EventValue(ctypes.Structure):
    """programmaticEvent and launchCompletionEvent."""

    _fields_ = (("event", c_void_p), ("flags", c_int), ("trigger_at_start", c_int))


class AttributeValue(ctypes.Union):
    """CUlaunchAttributeValue, as far as tests need it."""

    _fields_ = (("pad", c_char * 64), ("dim", Dim), ("number", c_int), ("event", EventValue))


class Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = (("id", c_uint), ("pad", c_uint), ("value", AttributeValue))


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint), ("stream", c_void_p),
        ("attributes", c_void_p), ("count", c_uint),
    )  # fmt: skip


def make_config(
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    attributes: list[tuple[int, Any]],
    stream: c_void_p | None = None,
) -> tuple[Config, Any]:
    """A configuration, and the attributes that must stay alive with it."""
    array = (Attribute * max(1, len(attributes)))()
    for place, (which, value) in enumerate(attributes):
        array[place].id = which
        if isinstance(value, tuple):
            array[place].value.dim = Dim(*value)
        elif isinstance(value, EventValue):
            array[place].value.event = value
        else:
            array[place].value.number = value
    config = Config(
        (c_uint * 3)(*grid), (c_uint * 3)(*block), 0, stream, addressof(array), len(attributes)
    )
    return config, array


def launch_ex(
    driver: Driver,
    function: c_void_p,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    attributes: list[tuple[int, Any]],
    parameters: Parameters | None = None,
    stream: c_void_p | None = None,
) -> int:
    """cuLaunchKernelEx; its result."""
    config, keep = make_config(grid, block, attributes, stream)
    result: int = driver.lib.cuLaunchKernelEx(
        byref(config), function, parameters.pointers if parameters else None, None
    )
    del keep
    return result


def attributes_of(driver: Driver, function: c_void_p) -> list[int | None]:
    """Every CUfunction_attribute of a function; None where the driver has none."""
    found: list[int | None] = []
    for which in range(16):
        value = c_int()
        result = driver.lib.cuFuncGetAttribute(byref(value), which, function)
        found.append(value.value if result == 0 else None)
    return found
