"""Modules, libraries, functions, kernels and launches."""

from __future__ import annotations

import ctypes
import struct
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p

import pytest

from tests.softgpu.driver import COUNTER, HEADER, INVALID_VALUE, SCALE, Driver, pointers

NO_BINARY, INVALID_IMAGE, INVALID_PTX, UNSUPPORTED_VERSION = 209, 200, 218, 222
NOT_FOUND, INVALID_HANDLE, NOT_SUPPORTED, OUT_OF_MEMORY = 500, 400, 801, 2


def scaled(n: int, factor: int) -> bytes:
    return struct.pack(f"{n}I", *(i * factor + i for i in range(n)))


def buffers(driver: Driver, n: int) -> tuple[int, int]:
    return driver.allocate(4 * n), driver.upload(struct.pack(f"{n}I", *range(n)))


def global_of(driver: Driver, module: int, name: bytes = b"counter") -> tuple[int, int]:
    address, size = c_uint64(), c_size_t()
    driver.cuModuleGetGlobal_v2(byref(address), byref(size), c_void_p(module), c_char_p(name))
    return address.value, size.value


def counter(driver: Driver, address: int) -> int:
    return int.from_bytes(driver.download(address, 4), "little")


def test_a_kernel_computes(driver: Driver) -> None:
    n = 1000
    out, source = buffers(driver, n)
    function = driver.function(driver.module(SCALE), "scale")
    driver.launch(function, 4, 256, c_uint64(out), c_uint64(source), c_uint(7), c_uint(n))
    assert driver.download(out, 4 * n) == scaled(n, 7)


def test_parameters_in_one_buffer(driver: Driver) -> None:
    n = 64
    out, source = buffers(driver, n)
    function = driver.function(driver.module(SCALE), "scale")
    packed = ctypes.create_string_buffer(struct.pack("QQII", out, source, 2, n), 24)
    size = c_size_t(24)
    extra = (c_void_p * 5)(1, ctypes.addressof(packed), 2, ctypes.addressof(size), 0)
    grid = [c_uint(number) for number in (1, 1, 1, 64, 1, 1, 0)]
    driver.cuLaunchKernel(c_void_p(function), *grid, c_void_p(0), None, extra)
    assert driver.download(out, 4 * n) == scaled(n, 2)


def test_launches_beyond_the_limits_fail_at_once(driver: Driver) -> None:
    function = driver.function(driver.module(COUNTER), "bump")

    def launch(*shape: int) -> int:
        numbers = [c_uint(number) for number in shape]
        result: int = driver.result.cuLaunchKernel(
            c_void_p(function), *numbers, c_void_p(0), pointers(c_uint(1)), None
        )
        return result

    assert launch(1, 1, 1, 1024, 1, 1, 49152) == 0
    wrong = [
        (0, 1, 1, 1, 1, 1, 0),
        (1, 65536, 1, 1, 1, 1, 0),
        (1, 1, 1, 0, 1, 1, 0),
        (1, 1, 1, 1025, 1, 1, 0),
        (1, 1, 1, 32, 33, 1, 0),
        (1, 1, 1, 1, 1, 65, 0),
        (1, 1, 1, 1, 1, 1, 49153),
    ]
    for shape in wrong:
        assert launch(*shape) == INVALID_VALUE, shape
    driver.cuFuncSetAttribute(c_void_p(function), 8, 100000)
    assert launch(1, 1, 1, 1, 1, 1, 100000) == 0
    assert driver.result.cuFuncSetAttribute(c_void_p(function), 8, 232449) == INVALID_VALUE


class Attribute(ctypes.Structure):
    """CUlaunchAttribute of cuda.h."""

    _fields_ = [("id", c_int), ("pad", c_int), ("value", c_uint * 16)]


class Config(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = [
        ("shape", c_uint * 7),
        ("stream", c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("count", c_uint),
    ]


@pytest.mark.parametrize(
    ("number", "value", "expected"),
    [
        (0, 0, 0),
        (8, 1, 0),
        (6, 1, 0),
        (2, 1, 0),
        (4, 1, 0),
        (4, 2, 912),
        (7, 0, INVALID_HANDLE),  # an event to record, which is none
        (13, 1, NOT_SUPPORTED),
    ],
)
def test_launch_attributes(driver: Driver, number: int, value: int, expected: int) -> None:
    function = driver.function(driver.module(COUNTER), "bump")
    attribute = Attribute(number, 0, (c_uint * 16)(value, *([1, 1] if number == 4 else [0, 0])))
    config = Config((c_uint * 7)(1, 1, 1, 1, 1, 1, 0), None, ctypes.pointer(attribute), 1)
    result = driver.result.cuLaunchKernelEx(
        byref(config), c_void_p(function), pointers(c_uint(1)), None
    )
    assert result == expected


def test_a_cooperative_grid_too_large_to_be_resident_is_refused(driver: Driver) -> None:
    function = driver.function(driver.module(COUNTER), "bump")
    shape = [c_uint(number) for number in (100000, 1, 1, 32, 1, 1, 0)]
    result = driver.result.cuLaunchCooperativeKernel(
        c_void_p(function), *shape, c_void_p(0), pointers(c_uint(1))
    )
    assert result == 720


def test_variables_have_their_initial_value_and_keep_what_kernels_write(driver: Driver) -> None:
    module = driver.module(COUNTER)
    address, size = global_of(driver, module)
    assert (size, counter(driver, address)) == (4, 5)
    driver.launch(driver.function(module, "bump"), 2, 32, c_uint(2))
    assert counter(driver, address) == 5 + 128
    other, _ = global_of(driver, driver.module(COUNTER))
    assert counter(driver, other) == 5


def test_what_is_not_there(driver: Driver) -> None:
    module = driver.module(COUNTER)
    out = c_void_p()
    get = driver.result.cuModuleGetFunction
    assert get(byref(out), c_void_p(module), c_char_p(b"nothing")) == NOT_FOUND
    assert get(byref(out), c_void_p(0x99), c_char_p(b"bump")) == INVALID_HANDLE
    address, size = c_uint64(), c_size_t()
    found = driver.result.cuModuleGetGlobal_v2(
        byref(address), byref(size), c_void_p(module), c_char_p(b"no")
    )
    assert found == NOT_FOUND


def test_unloading_takes_the_functions_along(driver: Driver) -> None:
    module = driver.module(COUNTER)
    function = driver.function(module, "bump")
    driver.cuModuleUnload(c_void_p(module))
    value = c_int()
    assert driver.result.cuFuncGetAttribute(byref(value), 0, c_void_p(function)) == INVALID_HANDLE
    assert driver.result.cuModuleUnload(c_void_p(module)) == INVALID_HANDLE


def test_function_attributes(driver: Driver) -> None:
    function = driver.function(driver.module(SCALE), "scale")

    def attribute(number: int) -> int:
        value = c_int(-7)
        driver.cuFuncGetAttribute(byref(value), number, c_void_p(function))
        return value.value

    assert attribute(0) == 1024
    assert attribute(1) == 0
    assert attribute(4) > 0
    assert (attribute(5), attribute(6)) == (80, 80)
    assert attribute(8) == 49152
    name = c_char_p()
    driver.cuFuncGetName(byref(name), c_void_p(function))
    assert name.value == b"scale"


def test_parameter_layout(driver: Driver) -> None:
    function = driver.function(driver.module(SCALE), "scale")
    found = []
    offset, size = c_size_t(), c_size_t()
    index = 0
    while (
        driver.result.cuFuncGetParamInfo(
            c_void_p(function), c_size_t(index), byref(offset), byref(size)
        )
        == 0
    ):
        found.append((offset.value, size.value))
        index += 1
    assert found == [(0, 8), (8, 8), (16, 4), (20, 4)]


def test_a_module_lists_its_functions(driver: Driver) -> None:
    module = driver.module(SCALE)
    count = c_uint()
    driver.cuModuleGetFunctionCount(byref(count), c_void_p(module))
    assert count.value == 1
    functions = (c_void_p * 1)()
    driver.cuModuleEnumerateFunctions(functions, c_uint(1), c_void_p(module))
    assert functions[0] == driver.function(module, "scale")


def load_library(driver: Driver, ptx: str) -> int:
    nothing = (None, None, c_uint(0))
    return driver.handle("cuLibraryLoadData", c_char_p(ptx.encode()), *nothing, *nothing)


def test_a_library_in_two_contexts_has_two_sets_of_variables(driver: Driver) -> None:
    library = load_library(driver, COUNTER)
    kernel = driver.handle("cuLibraryGetKernel", c_void_p(library), c_char_p(b"bump"))
    address, size = c_uint64(), c_size_t()

    def variable() -> int:
        driver.cuLibraryGetGlobal(
            byref(address), byref(size), c_void_p(library), c_char_p(b"counter")
        )
        return address.value

    first = variable()
    driver.launch(kernel, 1, 1, c_uint(10))  # a CUkernel is launched as it is
    assert counter(driver, first) == 15
    second_context = driver.handle("cuCtxCreate_v2", c_uint(0), 0)
    second = variable()
    assert second != first
    assert counter(driver, second) == 5
    driver.launch(driver.handle("cuKernelGetFunction", c_void_p(kernel)), 1, 1, c_uint(1))
    assert counter(driver, second) == 6
    driver.cuCtxDestroy_v2(c_void_p(second_context))
    assert counter(driver, first) == 15
    driver.cuLibraryUnload(c_void_p(library))
    assert driver.result.cuLibraryUnload(c_void_p(library)) == INVALID_HANDLE


def test_a_library_whose_variables_do_not_fit(driver: Driver) -> None:
    library = load_library(driver, HEADER + ".visible .global .b8 big[1048576];\n")
    room, total, module = c_size_t(), c_size_t(), c_void_p()
    driver.cuMemGetInfo_v2(byref(room), byref(total))
    taken = driver.allocate(room.value)
    for _ in range(2):
        refused = driver.result.cuLibraryGetModule(byref(module), c_void_p(library))
        assert refused == OUT_OF_MEMORY
    driver.cuMemFree_v2(c_uint64(taken))
    driver.cuLibraryGetModule(byref(module), c_void_p(library))
    driver.cuLibraryUnload(c_void_p(library))
    library = load_library(driver, HEADER + ".visible .global .b8 big[1048576];\n")
    taken = driver.allocate(room.value)
    refused = driver.result.cuLibraryGetModule(byref(module), c_void_p(library))
    assert refused == OUT_OF_MEMORY
    driver.cuLibraryUnload(c_void_p(library))


def test_kernels_of_a_library(driver: Driver) -> None:
    library = load_library(driver, SCALE)
    count = c_uint()
    driver.cuLibraryGetKernelCount(byref(count), c_void_p(library))
    kernels = (c_void_p * count.value)()
    driver.cuLibraryEnumerateKernels(kernels, count, c_void_p(library))
    name = c_char_p()
    driver.cuKernelGetName(byref(name), c_void_p(kernels[0]))
    assert name.value == b"scale"
    driver.cuKernelSetAttribute(8, 65536, c_void_p(kernels[0]), 0)
    value = c_int()
    driver.cuKernelGetAttribute(byref(value), 8, c_void_p(kernels[0]), 0)
    assert value.value == 65536
    module = driver.handle("cuLibraryGetModule", c_void_p(library))
    driver.cuFuncGetAttribute(byref(value), 8, c_void_p(driver.function(module, "scale")))
    assert value.value == 65536
    assert driver.result.cuModuleUnload(c_void_p(module)) == 800


def load(driver: Driver, image: bytes) -> tuple[int, str]:
    """The result of cuModuleLoadDataEx and what it wrote into the error log."""
    log = ctypes.create_string_buffer(500)
    options = (c_int * 2)(5, 6)
    values = (c_void_p * 2)(ctypes.addressof(log), 500)
    module = c_void_p()
    result = driver.result.cuModuleLoadDataEx(
        byref(module), c_char_p(image), c_uint(2), options, values
    )
    if result != 0:
        assert values[1] == len(log.value)
    return result, log.value.decode()


def test_images_that_cannot_be_loaded_say_why(
    driver: Driver, capfd: pytest.CaptureFixture[str]
) -> None:
    result, log = load(driver, b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xbe\x00" + bytes(44))
    assert result == NO_BINARY
    assert log
    assert log in capfd.readouterr().err
    result, log = load(driver, b"this is no image of any kind")
    assert result == INVALID_IMAGE
    assert log
    result, log = load(driver, HEADER.replace("7.8", "12.1").encode())
    assert result == UNSUPPORTED_VERSION
    assert "12.1" in log
    bad = HEADER + ".visible .entry k() { .reg .b32 %r<2>; nonsense.u32 %r1, %r1; ret; }"
    result, log = load(driver, bad.encode())
    assert result == INVALID_PTX
    assert "nonsense" in log
    result, log = load(driver, SCALE.encode())
    assert (result, log) == (0, "")


def test_ptx_for_a_newer_architecture_has_no_binary_here(driver: Driver) -> None:
    result, log = load(driver, SCALE.replace("sm_80", "sm_90").encode())
    assert result == NO_BINARY
    assert "sm_90" in log


def test_linking_one_ptx(driver: Driver) -> None:
    state = c_void_p()
    driver.cuLinkCreate_v2(c_uint(0), None, None, byref(state))
    text = COUNTER.encode()
    more = (c_char_p(b"counter.ptx"), c_uint(0), None, None)
    driver.cuLinkAddData_v2(state, 1, c_char_p(text), c_size_t(len(text)), *more)
    again = driver.result.cuLinkAddData_v2(state, 1, c_char_p(text), c_size_t(len(text)), *more)
    assert again == NOT_SUPPORTED
    image, size = c_void_p(), c_size_t()
    driver.cuLinkComplete(state, byref(image), byref(size))
    module = driver.handle("cuModuleLoadData", image)
    driver.cuLinkDestroy(state)
    driver.launch(driver.function(module, "bump"), 1, 1, c_uint(1))
    assert counter(driver, global_of(driver, module)[0]) == 6


PRINT = (
    HEADER
    + """
.extern .func (.param .b32 result) vprintf(.param .b64 format, .param .b64 arguments);
.global .align 1 .b8 text[10] = {110, 117, 109, 98, 101, 114, 32, 37, 100, 10};
.global .align 1 .b8 terminated[11] = {110, 117, 109, 98, 101, 114, 32, 37, 100, 10, 0};
.visible .entry say(.param .u32 number)
{
  .local .align 8 .b8 depot[8];
  .reg .b64 %SP;
  .reg .b64 %SPL;
  .reg .b32 %r<3>;
  .reg .b64 %d<4>;
  mov.u64 %SPL, depot;
  cvta.local.u64 %SP, %SPL;
  ld.param.u32 %r1, [number];
  add.u64 %d1, %SP, 0;
  st.u32 [%d1], %r1;
  mov.u64 %d2, terminated;
  cvta.global.u64 %d3, %d2;
  {
    .param .b64 p0;
    st.param.b64 [p0], %d3;
    .param .b64 p1;
    st.param.b64 [p1], %d1;
    .param .b32 back;
    call.uni (back), vprintf, (p0, p1);
    ld.param.b32 %r2, [back];
  }
  ret;
}
"""
)


def test_printf_goes_to_standard_output(driver: Driver, capfd: pytest.CaptureFixture[str]) -> None:
    driver.launch(driver.function(driver.module(PRINT), "say"), 1, 1, c_uint(42))
    driver.cuCtxSynchronize()
    assert capfd.readouterr().out == "number 42\n"
