"""The linker, as numba uses it: the cubin stays valid until the state is destroyed."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Host
from tests.guest.test_module import run


def test_link(host: Host, transport: str, tmp_path: Path) -> None:
    run(host, transport, f"""
path = {str(tmp_path / "k.ptx")!r}
open(path, "wb").write(PTX)
def complete(state):
    cubin, size = c_void_p(), c_size_t()
    d.call("cuLinkComplete", state, byref(cubin), byref(size))
    return cubin, size
for from_file in (False, True):
    info = ctypes.create_string_buffer(4096)
    kinds = (c_int * 3)(3, 4, 12)
    values = (c_void_p * 3)(addressof(info), 4096, 1)
    state = c_void_p()
    d.call("cuLinkCreate_v2", 3, kinds, values, byref(state))
    if from_file:
        d.call("cuLinkAddFile_v2", state, 1, path.encode(), 0, None, None)
    else:
        arguments = (PTX, c_size_t(len(PTX)), b"kernels.ptx", 0, None, None)
        d.call("cuLinkAddData_v2", state, 1, *arguments)
    cubin, size = complete(state)
    assert size.value > 0
    image = ctypes.string_at(cubin, size.value)
    equal(image, ctypes.string_at(cubin, size.value))
    module = c_void_p()
    d.call("cuModuleLoadData", byref(module), cubin)
    fills(get_function(d, module, "fill"))
    d.call("cuLinkDestroy", state)
    equal(lib.cuLinkDestroy(state), INVALID_HANDLE)
    d.call("cuModuleLoadData", byref(module), image)
    fills(get_function(d, module, "fill"))
""")  # fmt: skip


def test_errors(host: Host, transport: str) -> None:
    run(host, transport, """
state = c_void_p()
d.call("cuLinkCreate_v2", 0, None, None, byref(state))
def add(data, kind=1, size=None, of=state):
    length = c_size_t(len(data) if size is None else size)
    return lib.cuLinkAddData_v2(of, kind, data, length, b"name", 0, None, None)
equal(add(PTX, kind=6), INVALID_VALUE)
equal(add(PTX, size=0), INVALID_VALUE)
equal(add(PTX, of=c_void_p(0x1234)), INVALID_HANDLE)
equal(add(b"\\x7fELF", kind=0), INVALID_IMAGE)
equal(add(b"not a fatbin at all", kind=2), INVALID_IMAGE)
equal(lib.cuLinkAddFile_v2(state, 1, b"/nonexistent", 0, None, None), 301)
equal(lib.cuLinkComplete(state, None, None), INVALID_VALUE)
d.call("cuLinkDestroy", state)
equal(add(PTX), INVALID_HANDLE)
""")  # fmt: skip
