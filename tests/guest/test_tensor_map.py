"""Tensor maps: arguments arrive whole. The software GPU has no tensor maps and says so."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.test_module import run


def test_encoders(host: Host, transport: str) -> None:
    run(host, transport, """
memory = ctypes.create_string_buffer(256)
place = (addressof(memory) + 63) // 64 * 64
address = d.alloc(1 << 20)
dimensions, strides = (c_uint64 * 5)(64, 64, 4, 2, 2), (c_uint64 * 4)(128, 8192, 32768, 65536)
box, steps = (c_uint * 5)(32, 32, 1, 1, 1), (c_uint * 5)(1, 1, 1, 1, 1)
def tiled(rank=2, map=place, dim=dimensions, strides=strides):
    return lib.cuTensorMapEncodeTiled(c_void_p(map), 6, rank, c_uint64(address), dim, strides,
                                      box, steps, 0, 0, 0, 0)
major = c_int()
d.call("cuDeviceGetAttribute", byref(major), 75, 0)
name = ctypes.create_string_buffer(100)
d.call("cuDeviceGetName", name, 100, 0)
supported = major.value >= 9 and b"NVIDIA" in name.value
for rank in range(1, 6):
    equal(tiled(rank), 0 if supported else NOT_SUPPORTED)
if supported:
    tiled()
    first = ctypes.string_at(place, 128)
    tiled()
    equal(ctypes.string_at(place, 128), first)
    dimensions[0] = 32
    tiled()
    assert ctypes.string_at(place, 128) != first
for rank in (0, 6, 10**6):
    equal(tiled(rank), INVALID_VALUE)
equal(tiled(map=0), INVALID_VALUE)
equal(tiled(dim=None), INVALID_VALUE)
equal(tiled(strides=None), INVALID_VALUE)
equal(tiled(1, strides=None), INVALID_VALUE)
equal(lib.cuTensorMapReplaceAddress(c_void_p(0), c_uint64(address)), INVALID_VALUE)
""")  # fmt: skip
