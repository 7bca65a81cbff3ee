"""A tenant fills all the memory it can get with a pattern; the next one looks for it.

On the software GPU, fresh memory holds the pattern by itself (GPUPOOL_SOFTGPU_LEFTOVER), as a
device's memory may hold what was there before; on a real card the first session writes it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Host

LEFTOVER = 0xA5

PRELUDE = """
import ctypes, sys
from ctypes import POINTER, byref, c_char, c_int, c_size_t, c_uint, c_uint64, c_ubyte, c_void_p
from tests.guest.cuda import *
from tests.guest.kernels import get_function, load_module
LEFTOVER, SIZE = 0xA5, 8 << 20
d = Driver()
s = d.stream()
"""

# Everything that gives device memory, as (name, bytes of it).
MAKERS = '''
def plain():
    return d.alloc(SIZE), SIZE
def small():
    return d.alloc(512), 512
def pitched():
    address, pitch = c_uint64(), c_size_t()
    d.call("cuMemAllocPitch_v2", byref(address), byref(pitch), c_size_t(1000), c_size_t(1000), 4)
    return address.value, pitch.value * 1000
def ordered():
    address = c_uint64()
    d.call("cuMemAllocAsync", byref(address), c_size_t(SIZE), s)
    d.call("cuStreamSynchronize", s)
    return address.value, SIZE
class Location(ctypes.Structure):
    _fields_ = [("type", c_int), ("id", c_int)]
class PoolProps(ctypes.Structure):
    _fields_ = [("kind", c_int), ("handles", c_int), ("location", Location), ("security", c_void_p),
                ("rest", c_ubyte * 64)]
class Prop(ctypes.Structure):
    _fields_ = [("kind", c_int), ("handles", c_int), ("location", Location), ("meta", c_void_p),
                ("flags", c_ubyte * 8)]
class Access(ctypes.Structure):
    _fields_ = [("location", Location), ("flags", c_int)]
def from_a_pool():
    pool, address = c_void_p(), c_uint64()
    props = PoolProps(kind=1, location=Location(1, 0))
    d.call("cuMemPoolCreate", byref(pool), byref(props))
    d.call("cuMemAllocFromPoolAsync", byref(address), c_size_t(SIZE), pool, s)
    d.call("cuStreamSynchronize", s)
    return address.value, SIZE
def mapped():
    prop, unit = Prop(kind=1, location=Location(1, 0)), c_size_t()
    d.call("cuMemGetAllocationGranularity", byref(unit), byref(prop), 0)
    size = (SIZE + unit.value - 1) // unit.value * unit.value
    address, block = c_uint64(), c_uint64()
    d.call("cuMemAddressReserve", byref(address), size, 0, 0, 0)
    d.call("cuMemCreate", byref(block), size, byref(prop), 0)
    d.call("cuMemMap", address, size, 0, block, 0)
    d.call("cuMemSetAccess", address, size, byref(Access(Location(1, 0), 3)), 1)
    return address.value, size
MODULE = b""".version 7.0
.target sm_70
.address_size 64
.visible .global .align 16 .b8 zeroes[1048576];
.visible .entry empty() { ret; }
"""
def module_global():
    address, size = c_uint64(), c_size_t()
    module = load_module(d, MODULE)
    d.call("cuModuleGetGlobal_v2", byref(address), byref(size), module, b"zeroes")
    return address.value, size.value
MAKERS = [plain, small, pitched, ordered, from_a_pool, mapped, module_global]
class Array3D(ctypes.Structure):
    _fields_ = [("width", c_size_t), ("height", c_size_t), ("depth", c_size_t), ("format", c_int),
                ("channels", c_uint), ("flags", c_uint)]
def array(width, height, depth):
    made = c_void_p()
    shape = Array3D(width, height, depth, 1, 4, 0)
    d.call("cuArray3DCreate_v2", byref(made), byref(shape))
    return made, width * 4, max(height, 1), max(depth, 1)
ARRAYS = [(1000, 0, 0), (2000, 1000, 0), (100, 50, 20)]
def read_array(shape):
    made, row, rows, planes = array(*shape)
    memory = (c_ubyte * (row * rows * planes))()
    copy = Memcpy3D(src_type=ARRAY, src_array=made, dst_type=HOST,
                    dst_host=ctypes.addressof(memory), dst_pitch=row, dst_height=rows,
                    width=row, height=rows, depth=planes)
    d.call("cuMemcpy3D_v2", byref(copy))
    return bytes(memory)
'''

FILL = """
made = []
try:
    for _ in range(40):
        for make in MAKERS[:6]:
            address, size = make()
            d.call("cuMemsetD8_v2", address, c_uint(LEFTOVER), c_size_t(size))
            made.append(address)
except CudaError as error:
    assert error.code == 2, error
pinned = d.pinned(64 << 20)
ctypes.memset(pinned, LEFTOVER, 64 << 20)
d.synchronize()
print(len(made))
"""

LOOK = """
dirty = []
pinned = d.pinned(64 << 20)
if any(ctypes.string_at(pinned, 64 << 20)):
    dirty.append("pinned")
for make in MAKERS:
    address, size = make()
    if any(d.download(address, size)):
        dirty.append(make.__name__)
for shape in ARRAYS:
    if any(read_array(shape)):
        dirty.append(f"array {shape}")
print(dirty)
"""

# The window as a client finds it right after cuInit: what it has itself written since is small.
WINDOW = """
from tests.e2e.client import window_base
lib = ctypes.CDLL("libcuda.so.1")
assert lib.cuInit(0) == 0
with open("/proc/self/maps") as maps:
    line = next(line for line in maps if "memfd:" in line)
low, high = (int(word, 16) for word in line.split()[0].split("-"))
pattern = bytes([LEFTOVER]) * 64
# Sparse: reading a page that nobody has written gives the kernel's page of zeroes.
for at in range(low, min(high, low + (128 << 20)), 1 << 20):
    assert pattern not in ctypes.string_at(at, min(1 << 20, high - at)), hex(at)
print("clean")
"""


def program(text: str) -> str:
    """A client program."""
    return PRELUDE + MAKERS + text


def test_nothing_of_another_tenant_is_found(
    request: pytest.FixtureRequest, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUPOOL_SOFTGPU_LEFTOVER", str(LEFTOVER))
    host: Host = request.getfixturevalue("own_host")
    assert int(host.run_python(transport, program(FILL))) > 6
    assert host.run_python(transport, program(LOOK)) == "[]\n"


def test_the_window_is_new(host: Host) -> None:
    host.run_python("shm", program(FILL))
    text = PRELUDE.replace("d = Driver()\ns = d.stream()\n", "") + WINDOW
    assert host.run_python("shm", text) == "clean\n"


@pytest.mark.softgpu
def test_without_scrubbing_it_would_be_found(
    request: pytest.FixtureRequest, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the test above can fail: the same look at a door with `scrub = false`."""
    monkeypatch.setenv("GPUPOOL_SOFTGPU_LEFTOVER", str(LEFTOVER))
    host: Host = request.getfixturevalue("own_host")
    host.stop()
    path: Path = host.folder / "hostd.toml"
    path.write_text(path.read_text().replace("[[endpoint]]\n", "[[endpoint]]\nscrub = false\n"))
    host.start()
    found = host.run_python(transport, program(LOOK))
    for name in ("plain", "small", "pitched", "ordered", "from_a_pool", "mapped", "array"):
        assert name in found
    assert "pinned" not in found
    assert "module_global" not in found
