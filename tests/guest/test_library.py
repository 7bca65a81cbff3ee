"""Libraries and kernels: what belongs to no context, and what a kernel is in one."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.test_module import run


def test_kernels(host: Host, transport: str) -> None:
    run(host, transport, """
library = load_library(d)
kernel = get_kernel(d, library, "fill")
equal(get_kernel(d, library, "fill").value, kernel.value)
function, owner, name = c_void_p(), c_void_p(), c_char_p()
d.call("cuKernelGetFunction", byref(function), kernel)
d.call("cuKernelGetLibrary", byref(owner), kernel)
d.call("cuKernelGetName", byref(name), kernel)
equal(owner.value, library.value)
equal(name.value, b"fill")
fills(kernel)
fills(function)
offset, size = c_size_t(), c_size_t()
d.call("cuKernelGetParamInfo", kernel, c_size_t(3), byref(offset), byref(size))
equal((offset.value, size.value), (16, 1))
equal(lib.cuKernelGetParamInfo(kernel, c_size_t(4), byref(offset), byref(size)), INVALID_VALUE)
count = c_uint()
d.call("cuLibraryGetKernelCount", byref(count), library)
equal(count.value, len(NAMES))
kernels = (c_void_p * count.value)()
d.call("cuLibraryEnumerateKernels", kernels, count.value, library)
assert kernel.value in list(kernels)
equal(lib.cuLibraryGetKernel(byref(c_void_p()), library, b"missing"), NOT_FOUND)
equal(lib.cuLibraryGetManaged(byref(c_uint64()), None, library, b"counter"), NOT_FOUND)
equal(lib.cuLibraryGetUnifiedFunction(byref(c_void_p()), library, b"fill"), NOT_FOUND)
""")  # fmt: skip


def test_without_a_context(host: Host, transport: str) -> None:
    """A library loads and its kernels are found; what needs a context says so."""
    run(host, transport, """
d.call("cuCtxSetCurrent", None)
library = load_library(d)
kernel = get_kernel(d, library, "fill")
out = c_void_p()
equal(lib.cuKernelGetFunction(byref(out), kernel), 201)
equal(lib.cuLibraryGetModule(byref(out), library), 201)
equal(lib.cuLibraryGetGlobal(byref(c_uint64()), None, library, b"counter"), 201)
equal(launch(d, kernel, parameters=Parameters(c_uint64(0))), 201)
value = c_int()
d.call("cuKernelGetAttribute", byref(value), 0, kernel, 0)
assert value.value > 0
d.call("cuCtxSetCurrent", d.context)
fills(kernel)
""")  # fmt: skip


def test_module_and_variables_of_a_library(host: Host, transport: str) -> None:
    run(host, transport, """
library = load_library(d)
module, again, owner = c_void_p(), c_void_p(), c_void_p()
d.call("cuLibraryGetModule", byref(module), library)
d.call("cuLibraryGetModule", byref(again), library)
equal(module.value, again.value)
function = c_void_p()
d.call("cuKernelGetFunction", byref(function), get_kernel(d, library, "fill"))
d.call("cuFuncGetModule", byref(owner), function)
equal(owner.value, module.value)
equal(lib.cuModuleUnload(module), 800)
fills(get_function(d, module, "fill"))
address, size = c_uint64(), c_size_t()
d.call("cuLibraryGetGlobal", byref(address), byref(size), library, b"counter")
equal(size.value, 4)
equal(d.download(address.value, 4), struct.pack("<i", 7))
equal(d.attribute(2, address.value), DEVICE)
equal(lib.cuLibraryGetGlobal(byref(address), None, library, b"missing"), NOT_FOUND)
kernel = get_kernel(d, library, "fill")
d.call("cuLibraryUnload", library)
equal(lib.cuLibraryUnload(library), INVALID_HANDLE)
equal(launch(d, kernel), INVALID_HANDLE)
equal(launch(d, function), INVALID_HANDLE)
d.synchronize()
""")  # fmt: skip


def test_attributes(host: Host, transport: str) -> None:
    """A function's own attribute wins over its kernel's; both are remembered here."""
    run(host, transport, """
library = load_library(d)
kernel = get_kernel(d, library, "nothing")
def of_kernel(which):
    value = c_int()
    d.call("cuKernelGetAttribute", byref(value), which, kernel, 0)
    return value.value
function = c_void_p()
d.call("cuKernelGetFunction", byref(function), kernel)
equal(of_kernel(8), 49152)
d.call("cuKernelSetAttribute", 8, 60000, kernel, 0)
equal(of_kernel(8), 60000)
equal(attributes_of(d, function)[8], 60000)
d.call("cuFuncSetAttribute", function, 8, 70000)
equal(attributes_of(d, function)[8], 70000)
equal(of_kernel(8), 60000)
d.call("cuKernelSetAttribute", 8, 50000, kernel, 0)
equal(attributes_of(d, function)[8], 70000)
equal(lib.cuKernelSetAttribute(4, 1, kernel, 0), INVALID_VALUE)
equal(lib.cuKernelGetAttribute(byref(c_int()), 16, kernel, 0), INVALID_VALUE)
equal(lib.cuKernelGetAttribute(byref(c_int()), 0, kernel, 99), 101)
equal(lib.cuFuncSetAttribute(function, 8, 10**7), INVALID_VALUE)
equal(lib.cuFuncSetAttribute(function, 8, -1), INVALID_VALUE)
d.call("cuFuncSetCacheConfig", function, 1)
d.call("cuKernelSetCacheConfig", kernel, 2, 0)
equal(lib.cuFuncSetCacheConfig(function, 9), INVALID_VALUE)
state = c_int()
d.call("cuFuncLoad", function)
d.call("cuFuncIsLoaded", byref(state), function)
equal(state.value, 1)
d.synchronize()
""")  # fmt: skip


def test_library_options(host: Host, transport: str) -> None:
    run(host, transport, """
library = c_void_p()
preserved, unknown, value = (c_int * 1)(1), (c_int * 1)(7), (c_void_p * 1)(1)
d.call("cuLibraryLoadData", byref(library), PTX, None, None, 0, preserved, value, 1)
fills(get_kernel(d, library, "fill"))
equal(lib.cuLibraryLoadData(byref(library), PTX, None, None, 0, unknown, value, 1), INVALID_VALUE)
from_file = lib.cuLibraryLoadFromFile
equal(from_file(byref(library), b"/x", None, None, 0, preserved, value, 1), INVALID_VALUE)
equal(from_file(byref(library), b"/nonexistent", None, None, 0, None, None, 0), 301)
""")  # fmt: skip
