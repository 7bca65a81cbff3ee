"""Modules: images of every form, look-ups, variables, errors as driver 580 gives them."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import ROOT, Host

PRELUDE = """
import ctypes, struct, sys
from ctypes import addressof, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from tests.guest.cuda import *
from tests.guest.fatbin import fatbin, wrap
from tests.guest.kernels import *
d = Driver()
lib = d.lib
def equal(a, b):
    assert a == b, f"{a!r} is not {b!r}"
def fills(function, value=41):
    out = d.alloc(400)
    equal(launch(d, function, (4, 1, 1), (32, 1, 1), fill_parameters(out, 100, value, 1)), 0)
    equal(d.download(out, 400), struct.pack("<i", value + 1) * 100)
    d.free(out)
"""


def run(host: Host, transport: str, text: str, **variables: str) -> str:
    """Runs a program on a vGPU."""
    return host.run_python(transport, PRELUDE + text, PYTHONPATH=str(ROOT), **variables)


def test_images_of_every_form(host: Host, transport: str, tmp_path: Path) -> None:
    (tmp_path / "text.ptx").write_bytes(b"// no NUL at the end\n")
    run(host, transport, f"""
wrapper, keep = wrap(fatbin(PTX.decode(), 80))
bin_image = fatbin(PTX.decode(), 80)
path = {str(tmp_path)!r}
open(path + "/k.ptx", "wb").write(PTX)
open(path + "/k.fatbin", "wb").write(bin_image)
def loads(name, *arguments):
    module = c_void_p()
    d.call(name, byref(module), *arguments)
    fills(get_function(d, module, "fill"))
    d.call("cuModuleUnload", module)
loads("cuModuleLoadData", PTX)
loads("cuModuleLoadData", bin_image)
loads("cuModuleLoadData", byref(wrapper))
loads("cuModuleLoadFatBinary", bin_image)
loads("cuModuleLoadFatBinary", byref(wrapper))
loads("cuModuleLoadDataEx", PTX, 0, None, None)
loads("cuModuleLoad", (path + "/k.ptx").encode())
loads("cuModuleLoad", (path + "/k.fatbin").encode())
def loads_library(name, image):
    library = c_void_p()
    d.call(name, byref(library), image, None, None, 0, None, None, 0)
    fills(get_kernel(d, library, "fill"))
    d.call("cuLibraryUnload", library)
loads_library("cuLibraryLoadData", PTX)
loads_library("cuLibraryLoadData", byref(wrapper))
loads_library("cuLibraryLoadFromFile", (path + "/k.ptx").encode())
""")  # fmt: skip


def test_large_image(host: Host, transport: str) -> None:
    """More than the staging area holds, so that it travels in a piece of the heap."""
    run(host, transport, """
comment = b"// " + b"x" * 1000 + b"\\n"
module = load_module(d, comment * 30000 + PTX)
fills(get_function(d, module, "fill"))
""")  # fmt: skip


def test_look_ups_are_remembered(host: Host, transport: str) -> None:
    run(host, transport, """
module = load_module(d)
unloaded, state = (c_void_p * 6)(), c_int()
d.call("cuModuleEnumerateFunctions", unloaded, 6, module)
for function in unloaded:
    d.call("cuFuncIsLoaded", byref(state), c_void_p(function))
    equal(state.value, 0)
first = get_function(d, module, "fill")
fills(first)
d.call("cuFuncIsLoaded", byref(state), first)
equal(state.value, 1)
equal(get_function(d, module, "fill").value, first.value)
assert get_function(d, module, "count").value != first.value
name = c_char_p()
d.call("cuFuncGetName", byref(name), first)
equal(name.value, b"fill")
owner = c_void_p()
d.call("cuFuncGetModule", byref(owner), first)
equal(owner.value, module.value)
count = c_uint()
d.call("cuModuleGetFunctionCount", byref(count), module)
equal(count.value, len(NAMES))
functions = (c_void_p * 10)()
d.call("cuModuleEnumerateFunctions", functions, 10, module)
names = []
for function in functions[:count.value]:
    d.call("cuFuncGetName", byref(name), c_void_p(function))
    names.append(name.value.decode())
equal(sorted(names), sorted(NAMES))
assert first.value in list(functions)
mode = c_int()
d.call("cuModuleGetLoadingMode", byref(mode))
equal(mode.value, 2)
""")  # fmt: skip


def test_parameter_layout(host: Host, transport: str) -> None:
    run(host, transport, """
module = load_module(d)
def layout(name):
    function, found = get_function(d, module, name), []
    while True:
        offset, size = c_size_t(), c_size_t()
        result = lib.cuFuncGetParamInfo(function, c_size_t(len(found)), byref(offset), byref(size))
        if result != 0:
            equal(result, INVALID_VALUE)
            return found
        found.append((offset.value, size.value))
equal(layout("fill"), [(0, 8), (8, 4), (12, 4), (16, 1)])
equal(layout("nothing"), [])
offsets = layout("words")
equal([size for _, size in offsets], [4, 1024, 8])
assert offsets[1][0] >= offsets[0][0] + 4 and offsets[2][0] >= offsets[1][0] + 1024, offsets
fill, offset = get_function(d, module, "fill"), c_size_t()
equal(lib.cuFuncGetParamInfo(fill, c_size_t(0), None, None), INVALID_VALUE)
d.call("cuFuncGetParamInfo", fill, c_size_t(1), byref(offset), None)
equal(offset.value, 8)
""")  # fmt: skip


def test_variables(host: Host, transport: str) -> None:
    run(host, transport, """
module, other = load_module(d), load_module(d)
def variable(owner, name):
    address, size = c_uint64(), c_size_t()
    d.call("cuModuleGetGlobal_v2", byref(address), byref(size), owner, name)
    return address.value, size.value
counter, size = variable(module, b"counter")
equal(size, 4)
equal(variable(module, b"counter"), (counter, 4))
assert variable(other, b"counter")[0] != counter
equal(d.download(variable(module, b"table")[0], 16), bytes(range(1, 17)))
equal(d.download(counter, 4), struct.pack("<i", 7))
out = d.alloc(4)
for expected in (7, 8, 100):
    if expected == 100:
        d.upload(counter, struct.pack("<i", 100))
    equal(launch(d, get_function(d, module, "count"), parameters=Parameters(c_uint64(out))), 0)
    equal(d.download(out, 4), struct.pack("<i", expected))
equal(d.download(variable(other, b"counter")[0], 4), struct.pack("<i", 7))
equal(d.attribute(2, counter), DEVICE)
equal(lib.cuModuleGetGlobal_v2(byref(c_uint64()), None, module, b"missing"), NOT_FOUND)
equal(lib.cuModuleGetGlobal_v2(None, None, module, b"counter"), INVALID_VALUE)
d.call("cuModuleUnload", module)
d.synchronize()
value = c_uint64()
equal(lib.cuPointerGetAttribute(byref(value), 2, c_uint64(counter)), INVALID_VALUE)
""")  # fmt: skip


def test_errors(host: Host, transport: str, tmp_path: Path) -> None:
    run(host, transport, f"""
module, out = load_module(d), c_void_p()
equal(lib.cuModuleGetFunction(byref(out), module, b"missing"), NOT_FOUND)
equal(lib.cuModuleGetFunction(byref(out), module, b""), INVALID_VALUE)
equal(lib.cuModuleGetFunction(byref(out), c_void_p(0x1234), b"fill"), INVALID_HANDLE)
equal(lib.cuModuleLoadData(byref(out), b"\\x01\\x02\\x03\\x04"), INVALID_IMAGE)
equal(lib.cuModuleLoadData(byref(out), b"\\x7fELF" + bytes(200)), INVALID_IMAGE)
equal(lib.cuModuleLoadData(byref(out), None), INVALID_VALUE)
assert lib.cuModuleLoadData(byref(out), PTX.replace(b"mad.lo.s32", b"mad.up.s32")) != 0
equal(lib.cuModuleLoad(byref(out), b"{tmp_path}/missing"), 301)
unknown = (c_int * 1)(99)
equal(lib.cuModuleLoadDataEx(byref(out), PTX, 1, unknown, (c_void_p * 1)()), INVALID_VALUE)
names = (c_int * 1)(17)
equal(lib.cuModuleLoadDataEx(byref(out), PTX, 1, names, (c_void_p * 1)()), NOT_SUPPORTED)
function = get_function(d, module, "fill")
d.call("cuModuleUnload", module)
equal(lib.cuModuleUnload(module), INVALID_HANDLE)
equal(launch(d, function), INVALID_HANDLE)
equal(lib.cuModuleGetFunction(byref(out), module, b"fill"), INVALID_HANDLE)
fills(get_function(d, load_module(d), "fill"))
""")  # fmt: skip


def test_compiler_options(host: Host, transport: str) -> None:
    """Logs come back into the program's buffers, and the driver's numbers into the options."""
    run(host, transport, """
def load(image, *options):
    values = (c_void_p * len(options))(*[value for _, value in options])
    module = c_void_p()
    kinds = (c_int * len(options))(*[option for option, _ in options])
    return lib.cuModuleLoadDataEx(byref(module), image, len(options), kinds, values), values, module
error = ctypes.create_string_buffer(b"before", 4096)
info = ctypes.create_string_buffer(b"before", 4096)
logs = [(5, addressof(error)), (6, 4096), (3, addressof(info)), (4, 4096)]
result, values, _ = load(PTX.replace(b"mad.lo.s32", b"mad.up.s32"), *logs)
assert result != 0
assert len(error.value) > 6, error.value
equal(values[1] or 0, len(error.value))
tiny = ctypes.create_string_buffer(b"\\xaa" * 16, 16)
load(PTX.replace(b"mad.lo.s32", b"mad.up.s32"), (5, addressof(tiny)), (6, 8))
equal(tiny.raw[8:], b"\\xaa" * 8)
assert tiny.raw[7] == 0
result, values, module = load(PTX, (7, 3), (0, 64), *logs, (2, 0))
equal(result, 0)
equal(values[0], 3)
fills(get_function(d, module, "fill"))
""")  # fmt: skip


def test_many_modules(host: Host, transport: str) -> None:
    """Handles are used again; nothing is left of an unloaded module."""
    run(host, transport, """
for turn in range(300):
    module = load_module(d)
    function = get_function(d, module, "fill")
    if turn % 50 == 0:
        fills(function, turn)
    d.call("cuModuleUnload", module)
d.synchronize()
""")  # fmt: skip


def test_every_compiler_option(host: Host, transport: str) -> None:
    """Each is taken, refused in words, or unknown; none is dropped in silence."""
    run(host, transport, """
def load(*options):
    values = (c_void_p * len(options))(*[value for _, value in options])
    kinds = (c_int * len(options))(*[option for option, _ in options])
    module = c_void_p()
    return lib.cuModuleLoadDataEx(byref(module), PTX, len(options), kinds, values), values
text = ctypes.create_string_buffer(4096)
taken = [(0, 32), (1, 64), (2, 0), (7, 0), (7, 4), (8, 0), (10, 0), (11, 0), (12, 1), (13, 1),
         (14, 0), (14, 1), (16, 0)]
for option, value in taken:
    result, values = load((option, value))
    equal((option, value, result), (option, value, 0))
result, values = load((2, 0), (7, 2), (12, 1), (3, addressof(text)), (4, 4096))
equal(result, 0)
equal(values[1], 2)
equal(values[4] or 0, len(text.value))
for option in (17, 18, 19, 25, 26, 27, 28):
    equal((option, load((option, 0))[0]), (option, 801))
for option in (99, -1):
    equal((option, load((option, 0))[0]), (option, INVALID_VALUE))
equal(lib.cuModuleLoadDataEx(byref(c_void_p()), PTX, 1, None, None), INVALID_VALUE)
""")  # fmt: skip
