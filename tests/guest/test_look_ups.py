"""Looking up many functions of one module or library: how often that waits, and that nothing else
changes.
"""

from __future__ import annotations

import pytest

from tests.conftest import Host
from tests.guest.test_module import run

PROGRAM = """
from gpupool.guest import counters
TEXT = PTX.decode()
HEAD, ENTRY = TEXT[:TEXT.index("// out[i] = value")], TEXT[TEXT.index(".visible .entry fill"):]
ENTRY = ENTRY[:ENTRY.index("}") + 1]
def image(count):
    bodies = [ENTRY.replace("fill(", f"fill_{i}(") for i in range(count)]
    return (HEAD + "\\n".join(bodies)).encode() + b"\\0"
def waits():
    return sum(counters.read()["waits"].values())
def waited(step):
    before = waits()
    result = step()
    return waits() - before, result
class Of:
    def __init__(self, kind, count):
        self.kind, self.image = kind, image(count)
    def load(self):
        self.owner = (load_library if self.kind == "library" else load_module)(d, self.image)
        return self
    def get(self, name):
        return (get_kernel if self.kind == "library" else get_function)(d, self.owner, name)
    def missing(self, name):
        call = lib.cuLibraryGetKernel if self.kind == "library" else lib.cuModuleGetFunction
        return call(byref(c_void_p()), self.owner, name)
    def unload(self):
        d.call("cuLibraryUnload" if self.kind == "library" else "cuModuleUnload", self.owner)
"""

KINDS = pytest.mark.parametrize("kind", ["module", "library"])


@KINDS
def test_forty_in_a_row_wait_twice(host: Host, transport: str, kind: str) -> None:
    """One look-up, the names; then descriptions of many at the first use."""
    run(host, transport, PROGRAM + f"""
for turn in range(2):  # a module that is loaded again is another one
    code = Of({kind!r}, 40).load()
    count, found = waited(lambda: [code.get(f"fill_{{i}}") for i in range(40)])
    equal(count, 2)
    equal(len({{each.value for each in found}}), 40)
    equal(waited(lambda: [code.get(f"fill_{{i}}").value for i in range(40)]),
          (0, [each.value for each in found]))
    name = c_char_p()
    d.call("cuFuncGetName", byref(name), found[33])
    equal(name.value, b"fill_33")
    offset, size = c_size_t(), c_size_t()
    def layouts():
        for each in found:
            d.call("cuFuncGetParamInfo", each, c_size_t(1), byref(offset), byref(size))
            equal((offset.value, size.value), (8, 4))
            result = lib.cuFuncGetParamInfo(each, c_size_t(4), byref(offset), byref(size))
            equal(result, INVALID_VALUE)
    equal(waited(layouts)[0], 2)
    for each in (found[0], found[1], found[25], found[39]):
        fills(each)
    code.unload()
    out = c_void_p()
    equal(lib.cuFuncGetModule(byref(out), found[30]), INVALID_HANDLE)
""")  # fmt: skip


@KINDS
def test_used_one_by_one_nothing_more_is_asked(host: Host, transport: str, kind: str) -> None:
    """As PyTorch does: a look-up, a launch. No names, no descriptions of others."""
    run(host, transport, PROGRAM + f"""
code = Of({kind!r}, 12).load()
fills(code.get("fill_0"))
before = counters.read()["waits"]
for i in range(1, 12):
    fills(code.get(f"fill_{{i}}"))
after = counters.read()["waits"]
equal(after.get("function_names", 0), 0)
equal(after.get("functions_describe", 0), 0)
equal(after.get("function_describe", 0), before.get("function_describe", 0))
""")  # fmt: skip


@KINDS
def test_what_is_not_there_is_still_asked_for(host: Host, transport: str, kind: str) -> None:
    run(host, transport, PROGRAM + f"""
code = Of({kind!r}, 5).load()
for i in range(4):
    code.get(f"fill_{{i}}")
equal(waited(lambda: code.missing(b"fill_")), (1, NOT_FOUND))
equal(waited(lambda: code.missing(b"fill_5")), (1, NOT_FOUND))
equal(code.missing(b"counter"), NOT_FOUND)
equal(code.missing(b""), INVALID_VALUE)
equal(waited(lambda: code.get("fill_4"))[0], 0)
# Another module has other names.
other = Of({kind!r}, 3).load()
equal(other.missing(b"fill_4"), NOT_FOUND)
""")  # fmt: skip


@KINDS
def test_more_names_than_are_worth_having(host: Host, transport: str, kind: str) -> None:
    run(host, transport, PROGRAM + f"""
code = Of({kind!r}, 0)
long = "x" * 1000
code.image = image(40).replace(b"fill_", b"fill_" + long.encode() + b"_")
code.load()
count, found = waited(lambda: [code.get(f"fill_{{long}}_{{i}}") for i in range(40)])
equal(count, 41)
fills(found[39])
""")  # fmt: skip


def test_a_function_in_a_row_is_like_any_other(host: Host, transport: str) -> None:
    """Attributes, occupancy, loading states, launches from several threads: of functions that
    nobody waited for.
    """
    run(host, transport, PROGRAM + """
import threading
module = load_module(d)
names = [name for name in NAMES]
first = {name: get_function(d, module, name) for name in names}
value, state = c_int(), c_int()
d.call("cuFuncIsLoaded", byref(state), first["shared_16k"])
equal(state.value, 1)
d.call("cuFuncGetAttribute", byref(value), 1, first["shared_16k"])
equal(value.value, 16384)
d.call("cuFuncSetAttribute", first["count"], 8, 65536)
d.call("cuFuncGetAttribute", byref(value), 8, first["count"])
equal(value.value, 65536)
equal(launch(d, first["at_most_128"], (1, 1, 1), (256, 1, 1), Parameters()), INVALID_VALUE)
code = Of("module", 40).load()
found = [code.get(f"fill_{i}") for i in range(40)]
out = d.alloc(40 * 400)
failed = []
def work(part):
    d.call("cuCtxSetCurrent", d.context)
    for i in range(part, 40, 4):
        for turn in range(3):
            parameters = fill_parameters(out + 400 * i, 100, i, 1)
            result = launch(d, found[i], (4, 1, 1), (32, 1, 1), parameters)
            if result: failed.append((i, result))
threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
[thread.start() for thread in threads]
[thread.join(60) for thread in threads]
equal(failed, [])
d.call("cuCtxSynchronize")
for i in range(40):
    equal(d.download(out + 400 * i, 400), struct.pack("<i", i + 1) * 100)
""")  # fmt: skip


def test_kernels_found_without_a_context(host: Host, transport: str) -> None:
    run(host, transport, PROGRAM + """
d.call("cuCtxSetCurrent", None)
code = Of("library", 30).load()
count, found = waited(lambda: [code.get(f"fill_{i}") for i in range(30)])
equal(count, 2)
offset, size, function = c_size_t(), c_size_t(), c_void_p()
equal(lib.cuKernelGetFunction(byref(function), found[20]), 201)
value = c_int()
d.call("cuKernelGetAttribute", byref(value), 0, found[29], 0)
assert value.value > 0
d.call("cuCtxSetCurrent", d.context)
d.call("cuKernelGetParamInfo", found[21], c_size_t(1), byref(offset), byref(size))
equal((offset.value, size.value), (8, 4))
fills(found[20])
fills(found[29])
""")  # fmt: skip
