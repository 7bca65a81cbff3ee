"""Device and pinned memory as a program sees them: addresses, attributes, errors, clearing."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT, Host

PRELUDE = """
import ctypes, mmap, os, sys
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from tests.guest.cuda import *
d = Driver()
lib = d.lib
def equal(a, b, what=""):
    if a != b and isinstance(a, bytes) and len(a) > 100:
        raise AssertionError(f"{what}: {len(a)} bytes differ, the first are {a[:16]!r}")
    assert a == b, f"{what}: {a!r} is not {b!r}"
"""


VMM = """
class Prop(ctypes.Structure):
    _fields_ = (("type", c_int), ("handles", c_int), ("location_type", c_int), ("location", c_int),
                ("meta", c_void_p), ("flags", ctypes.c_ubyte * 8))
class Access(ctypes.Structure):
    _fields_ = (("location_type", c_int), ("location", c_int), ("flags", c_int))
prop = Prop(1, 0, 1, 0)
unit = c_size_t()
d.call("cuMemGetAllocationGranularity", byref(unit), byref(prop), 0)
unit = unit.value
"""


def run(host: Host, transport: str, text: str, **variables: str) -> str:
    """Runs a program on a vGPU."""
    return host.run_python(transport, PRELUDE + text, PYTHONPATH=str(ROOT), **variables)


def test_fresh_memory_is_clear(
    request: pytest.FixtureRequest, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device whose memory holds what was there before, and after the same client freed it.

    What a client keeps of its own freed memory (test_kept_memory.py) may come back as it was; any
    question gives it to the driver.
    """
    monkeypatch.setenv("GPUPOOL_SOFTGPU_LEFTOVER", "165")
    host: Host = request.getfixturevalue("own_host")
    run(host, transport, VMM + """
size = 3 << 20
s = d.stream()
def plain(turn):
    a = d.alloc(size)
    return a, lambda: d.free(a)
def pooled(turn):
    address = c_uint64()
    d.call("cuMemAllocAsync", byref(address), size, s)
    d.call("cuStreamSynchronize", s)
    return address.value, lambda: d.call("cuMemFreeAsync", address, s)
def freed_plainly(turn):
    return pooled(turn)[0], lambda: d.free(a)
reserved = c_uint64()
d.call("cuMemAddressReserve", byref(reserved), unit * 4, 0, 0, 0)
def mapped(turn):
    handles = []
    for i in range(2):
        handle = c_uint64()
        d.call("cuMemCreate", byref(handle), unit, byref(prop), 0)
        d.call("cuMemMap", reserved.value + i * unit, unit, 0, handle, 0)
        handles.append(handle)
    d.call("cuMemSetAccess", reserved.value, unit * 2, byref(Access(1, 0, 3)), 1)
    def end():
        d.synchronize()
        d.call("cuMemUnmap", reserved.value, unit * 2)
        for handle in handles:
            d.call("cuMemRelease", handle)
    return reserved.value, end
for make in (plain, pooled, freed_plainly, mapped):
    for turn in range(3):
        a, end = make(turn)
        equal(d.download(a, size), bytes(size), make.__name__)
        d.upload(a, b"\\xee" * size)
        d.synchronize()
        end()
        d.call("cuMemGetInfo_v2", byref(c_size_t()), byref(c_size_t()))
small = [d.alloc(1 + i * 100) for i in range(20)]
for i, a in enumerate(small):
    equal(d.download(a, 1 + i * 100), bytes(1 + i * 100))
""")  # fmt: skip


def test_address_range_and_attributes(host: Host, transport: str) -> None:
    """What cudart, PyTorch, CuPy and JAX ask of a device pointer."""
    run(host, transport, """
a = d.alloc(1000)
b = d.alloc(5 << 20)
base, size = c_uint64(), c_size_t()
d.call("cuMemGetAddressRange_v2", byref(base), byref(size), c_uint64(b + 12345))
equal((base.value, size.value), (b, 5 << 20))
equal(d.attribute(1, a + 999), d.context.value)      # CONTEXT
equal(d.attribute(2, a), DEVICE)                     # MEMORY_TYPE
equal(d.attribute(3, a + 5), a + 5)                  # DEVICE_POINTER
equal(d.attribute(8, a), 0)                          # IS_MANAGED
equal(d.attribute(9, a), 0)                          # DEVICE_ORDINAL
equal(d.attribute(11, b + 77), b)                    # RANGE_START_ADDR
equal(d.attribute(12, b + 77), 5 << 20)              # RANGE_SIZE
equal(d.attribute(13, b), 1)                         # MAPPED
assert d.attribute(7, a) != d.attribute(7, b)        # BUFFER_ID
value = c_uint64()
equal(lib.cuPointerGetAttribute(byref(value), 4, c_uint64(a)), INVALID_VALUE)   # HOST_POINTER
equal(lib.cuPointerGetAttribute(byref(value), 2, c_uint64(0x1234)), INVALID_VALUE)
def several(pointer):
    kinds = (c_int * 6)(1, 2, 3, 4, 8, 9)
    out = [c_uint64(0xdead), c_uint(7), c_uint64(7), c_uint64(7), c_uint(7), c_int(7)]
    places = (c_void_p * 6)(*[ctypes.addressof(o) for o in out])
    d.call("cuPointerGetAttributes", c_uint(6), kinds, places, c_uint64(pointer))
    return [o.value for o in out]
equal(several(a + 1), [d.context.value, DEVICE, a + 1, 0, 0, 0])
pageable = ctypes.create_string_buffer(100)
here = ctypes.addressof(pageable)
equal(several(here), [0, 0, 0, here, 0, -2])
pinned = d.pinned(4096)
equal(several(pinned + 8), [d.context.value, HOST, pinned + 8, pinned + 8, 0, 0])
one = c_uint(1)
d.call("cuPointerSetAttribute", byref(one), c_int(6), c_uint64(a))
equal(d.attribute(6, a), 1)                          # SYNC_MEMOPS
old = d.attribute(7, a)
d.free(a)
equal(lib.cuPointerGetAttribute(byref(value), 2, c_uint64(a)), INVALID_VALUE)
assert d.attribute(7, d.alloc(1000)) != old
""")  # fmt: skip


def test_freeing_what_is_not_allocated(host: Host, transport: str) -> None:
    """Refused at once, as by the driver."""
    run(host, transport, """
a = d.alloc(1 << 20)
equal(lib.cuMemFree_v2(c_uint64(0x123456)), INVALID_VALUE)
equal(lib.cuMemFree_v2(c_uint64(a + 4096)), INVALID_VALUE)
equal(lib.cuMemFree_v2(c_uint64(0)), SUCCESS)
d.free(a)
equal(lib.cuMemFree_v2(c_uint64(a)), INVALID_VALUE)
address = c_uint64()
equal(lib.cuMemAlloc_v2(byref(address), c_size_t(0)), INVALID_VALUE)
equal(lib.cuMemAlloc_v2(None, c_size_t(8)), INVALID_VALUE)
equal(lib.cuMemFreeHost(c_void_p(0x1000)), INVALID_VALUE)
""")  # fmt: skip


def test_too_much_memory_is_refused_at_once(host: Host, transport: str) -> None:
    """Out of memory is synchronous, and freeing makes room again."""
    run(host, transport, """
free, total = c_size_t(), c_size_t()
d.call("cuMemGetInfo_v2", byref(free), byref(total))
assert 0 < free.value <= total.value
address = c_uint64()
equal(lib.cuMemAlloc_v2(byref(address), c_size_t(total.value * 2)), OUT_OF_MEMORY)
equal(lib.cuMemAlloc_v2(byref(address), c_size_t(2 ** 63)), OUT_OF_MEMORY)
size = free.value * 5 // 8
for turn in range(3):
    d.free(d.alloc(size))
""")  # fmt: skip


def test_device_addresses_stay_free_in_the_program(host: Host, transport: str) -> None:
    """The program's own later mappings never overlap device memory."""
    run(host, transport, """
blocks = [(d.alloc(2 << 20), 2 << 20) for _ in range(8)] + [(d.alloc(64 << 20), 64 << 20)]
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = c_void_p
ALONE = 0x100000 | 0x20 | 2   # MAP_FIXED_NOREPLACE, MAP_ANONYMOUS, MAP_PRIVATE
for address, size in blocks:
    for at in (address, address + size - 4096):
        got = libc.mmap(c_void_p(at), c_size_t(4096), 0, ALONE, -1, 0)
        assert got in (None, c_void_p(-1).value), hex(got)
lines = [line.split()[0].split("-") for line in open("/proc/self/maps")]
mapped = [(int(a, 16), int(b, 16)) for a, b in lines]
for address, size in blocks:
    assert any(a <= address and address + size <= b for a, b in mapped) or size > (2 << 20)
""")  # fmt: skip


def test_memory_never_falls_on_the_programs_own_mappings(host: Host, transport: str) -> None:
    """A program that sits where the worker's driver allocates gets memory beside itself."""
    first = run(host, transport, "print(d.alloc(1 << 20))")
    run(host, transport, f"first = {first}" + """
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = c_void_p
begin = first & ~((2 << 20) - 1)
length = 10 << 20
NOREPLACE, ANONYMOUS, PRIVATE = 0x100000, 0x20, 2
got = libc.mmap(c_void_p(begin), c_size_t(length), 3, PRIVATE | ANONYMOUS | NOREPLACE, -1, 0)
equal(got, begin)
ctypes.memset(begin, 0x77, length)
held = []
for size in (1 << 20, 4096, 3 << 20, 100, 8 << 20):
    a = d.alloc(size)
    assert a + size <= begin or begin + length <= a, hex(a)
    d.upload(a, b"\x12" * size)
    held.append((a, size))
equal(read_host(begin, length), b"\x77" * length)
for a, size in held:
    equal(d.download(a, size), b"\x12" * size)
""")  # fmt: skip


def test_pitched_memory(host: Host, transport: str) -> None:
    """Rows begin at multiples of 512 bytes."""
    run(host, transport, """
address, pitch = c_uint64(), c_size_t()
d.call("cuMemAllocPitch_v2", byref(address), byref(pitch), c_size_t(100), c_size_t(7), c_uint(4))
equal(pitch.value, 512)
d.call("cuMemAllocPitch_v2", byref(address), byref(pitch), c_size_t(1025), c_size_t(3), c_uint(16))
equal(pitch.value, 1536)
equal(d.attribute(12, address.value), 1536 * 3)
equal(lib.cuMemAllocPitch_v2(byref(address), byref(pitch), 8, 8, 3), INVALID_VALUE)
""")  # fmt: skip


def test_pinned_memory(host: Host, transport: str) -> None:
    """One address on both sides, flags, sizes, errors."""
    run(host, transport, """
p = d.pinned(10000, 2)
write_host(p, b"x" * 10000)
device, flags = c_uint64(), c_uint()
d.call("cuMemHostGetDevicePointer_v2", byref(device), c_void_p(p + 16), c_uint(0))
equal(device.value, p + 16)
d.call("cuMemHostGetFlags", byref(flags), c_void_p(p + 1))
equal(flags.value, 2)
d.call("cuMemHostGetFlags", byref(flags), c_void_p(d.pinned(4096, 5)))  # mapped, never portable
equal(flags.value, 6)
equal(lib.cuMemHostGetDevicePointer_v2(byref(device), c_void_p(0x5000), 0), INVALID_VALUE)
pointer = c_void_p()
equal(lib.cuMemHostAlloc(byref(pointer), c_size_t(0), 0), SUCCESS)
equal((pointer.value, lib.cuMemFreeHost(pointer)), (None, SUCCESS))
equal(lib.cuMemHostAlloc(byref(pointer), c_size_t(8), 64), INVALID_VALUE)
equal(lib.cuMemHostAlloc(byref(pointer), c_size_t(1 << 50), 0), OUT_OF_MEMORY)
many = [d.pinned(size) for size in (1, 4095, 4097, 1 << 20, 17 << 20, 64 << 20)]
assert len(set(many)) == len(many)
for q in many:
    d.call("cuMemFreeHost", c_void_p(q))
equal(lib.cuMemFreeHost(c_void_p(many[0])), INVALID_VALUE)
for _ in range(15):                                # more than the window if nothing came back
    d.call("cuMemFreeHost", d.pinned(100 << 20))
    d.call("cuMemFreeHost", d.pinned(1 << 20))
kept = [d.pinned(1 << 20) for _ in range(20)]
""")  # fmt: skip


def test_registered_memory(host: Host, transport: str) -> None:
    """Bookkeeping: attributes, overlaps, and copies that still work."""
    run(host, transport, """
area = mmap.mmap(-1, 1 << 20)
p = ctypes.addressof(ctypes.c_char.from_buffer(area))
d.call("cuMemHostRegister_v2", c_void_p(p), c_size_t(1 << 20), c_uint(1))
equal(d.attribute(2, p + 100), HOST)
equal(d.attribute(4, p + 100), p + 100)
equal(lib.cuMemHostRegister_v2(c_void_p(p + 4096), c_size_t(4096), 0), ALREADY_REGISTERED)
a = d.alloc(1 << 20)
data = pattern(1 << 20)
area[:] = data
d.call("cuMemcpyHtoDAsync_v2", c_uint64(a), c_void_p(p), c_size_t(1 << 20), None)
area[:] = bytes(1 << 20)
d.call("cuMemcpyAsync", c_uint64(p), c_uint64(a), c_size_t(1 << 20), None)
d.synchronize()
equal(area[:], data)
d.call("cuMemHostUnregister", c_void_p(p))
equal(lib.cuMemHostUnregister(c_void_p(p)), NOT_REGISTERED)
value = c_uint64()
equal(lib.cuPointerGetAttribute(byref(value), 2, c_uint64(p)), INVALID_VALUE)
""")  # fmt: skip


def test_pools(host: Host, transport: str) -> None:
    """Stream-ordered memory from the default pool and from one of the program's own."""
    run(host, transport, """
class Properties(ctypes.Structure):
    _fields_ = (("type", c_int), ("handles", c_int), ("location_type", c_int), ("location", c_int),
                ("security", c_void_p), ("max", c_size_t), ("usage", ctypes.c_ushort),
                ("reserved", ctypes.c_ubyte * 54))
s = d.stream()
pool = c_void_p()
d.call("cuDeviceGetDefaultMemPool", byref(pool), 0)
again = c_void_p()
d.call("cuDeviceGetMemPool", byref(again), 0)
equal(again.value, pool.value)
threshold = c_uint64(123 << 20)
d.call("cuMemPoolSetAttribute", pool, 4, byref(threshold))
threshold.value = 0
d.call("cuMemPoolGetAttribute", pool, 4, byref(threshold))
equal(threshold.value, 123 << 20)
a, b = c_uint64(), c_uint64()
d.call("cuMemAllocAsync", byref(a), c_size_t(1 << 20), s)
data = pattern(1 << 20)
d.call("cuMemcpyHtoDAsync_v2", a, data, c_size_t(len(data)), s)
d.call("cuStreamSynchronize", s)
equal(d.download(a.value, len(data)), data)
used = c_uint64()
d.call("cuMemPoolGetAttribute", pool, 7, byref(used))
assert used.value >= 1 << 20, used.value
d.call("cuMemFreeAsync", a, s)
equal(lib.cuMemFreeAsync(a, s) != SUCCESS, True)
own = c_void_p()
d.call("cuMemPoolCreate", byref(own), byref(Properties(1, 0, 1, 0)))
d.call("cuMemAllocFromPoolAsync", byref(b), c_size_t(4096), own, s)
equal(d.attribute(17, b.value), own.value)           # MEMPOOL_HANDLE
d.call("cuMemFreeAsync", b, s)
d.call("cuStreamSynchronize", s)
d.call("cuMemPoolTrimTo", own, c_size_t(0))
d.call("cuMemPoolDestroy", own)
equal(lib.cuMemAllocFromPoolAsync(byref(b), c_size_t(4096), own, s) != SUCCESS, True)
""")  # fmt: skip


def test_virtual_memory(host: Host, transport: str) -> None:
    """The calls that PyTorch's expandable segments make, in their order."""
    run(host, transport, VMM + """
base = c_uint64()
d.call("cuMemAddressReserve", byref(base), unit * 16, 0, 0, 0)
base = base.value
value = c_uint64()
def add(index):
    handle = c_uint64()
    d.call("cuMemCreate", byref(handle), c_size_t(unit), byref(prop), c_uint64(0))
    d.call("cuMemMap", base + index * unit, unit, 0, handle, 0)
    d.call("cuMemSetAccess", base + index * unit, unit, byref(Access(1, 0, 3)), 1)
    return handle
handles = [add(i) for i in range(4)]
equal(d.download(base, unit * 4), bytes(unit * 4))
data = pattern(unit * 3)
d.upload(base + unit // 2, data)                      # across mappings
equal(d.download(base + unit // 2, unit * 3), data)
start, size = c_uint64(), c_size_t()
d.call("cuMemGetAddressRange_v2", byref(start), byref(size), c_uint64(base + unit + 5))
equal((start.value, size.value), (base + unit, unit))
equal(d.attribute(11, base + unit + 5), base)
equal(d.attribute(12, base + unit + 5), unit * 16)
equal(d.attribute(13, base), 1)
equal(lib.cuPointerGetAttribute(byref(value), 13, c_uint64(base + 8 * unit)), INVALID_VALUE)
equal(lib.cuMemcpyHtoD_v2(c_uint64(base + 8 * unit), b"abc", c_size_t(3)) != SUCCESS, True)
last = c_uint64(base + 3 * unit)
equal(lib.cuMemcpyHtoD_v2(last, bytes(unit + 1), c_size_t(unit + 1)), INVALID_VALUE)
flags = c_uint64()
class Location(ctypes.Structure):
    _fields_ = (("type", c_int), ("id", c_int))
d.call("cuMemGetAccess", byref(flags), byref(Location(1, 0)), c_uint64(base))
equal(flags.value, 3)
got = Prop()
d.call("cuMemGetAllocationPropertiesFromHandle", byref(got), handles[0])
equal((got.location_type, got.location), (1, 0))
d.synchronize()
equal(lib.cuMemAddressFree(c_uint64(base), c_size_t(unit * 16)), INVALID_VALUE)   # still mapped
for i, handle in enumerate(handles):
    d.call("cuMemUnmap", c_uint64(base + i * unit), c_size_t(unit))
    d.call("cuMemRelease", handle)
equal(lib.cuMemUnmap(c_uint64(base), c_size_t(unit)), SUCCESS)         # nothing there: done
equal(lib.cuMemUnmap(c_uint64(base), c_size_t(unit * 17)), INVALID_VALUE)
d.call("cuMemAddressFree", c_uint64(base), c_size_t(unit * 16))
d.synchronize()
value = c_uint64()
equal(lib.cuPointerGetAttribute(byref(value), 2, c_uint64(base)), INVALID_VALUE)
""")  # fmt: skip


def test_many_threads_allocate(host: Host, transport: str) -> None:
    """Addresses never overlap, and the table follows."""
    run(host, transport, """
import threading
held, lock, errors = {}, threading.Lock(), []
def work(seed):
    try:
        d.call("cuCtxSetCurrent", d.context)
        mine = []
        for turn in range(60):
            size = (seed * 7919 + turn * 104729) % 300000 + 1
            a = d.alloc(size)
            with lock:
                for b, length in held.items():
                    assert a + size <= b or b + length <= a
                held[a] = size
            mine.append(a)
            assert d.attribute(12, a + size - 1) == size
            if turn % 3 == 2:
                b = mine.pop(0)
                with lock:
                    del held[b]
                d.free(b)
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
[t.start() for t in threads]
[t.join() for t in threads]
assert not errors, errors
""")  # fmt: skip


def test_pinned_memory_outlives_the_context_it_was_made_in(host: Host) -> None:
    """Its pages are the session's: kernels of the next context reach what was handed out again.

    On shared memory only: elsewhere kernels do not reach it.
    """
    run(host, "shm", """
from tests.guest.kernels import Parameters, get_function, launch, load_module
def create():
    context = c_void_p()
    d.call("cuCtxCreate_v2", byref(context), 0, 0)
    return context
def write(value):
    pinned = d.pinned(4096)
    module = load_module(d)
    parameters = Parameters(c_uint64(pinned), c_uint(4), c_uint(value), ctypes.c_ubyte(0))
    equal(launch(d, get_function(d, module, "fill"), (1, 1, 1), (32, 1, 1), parameters), SUCCESS)
    d.call("cuCtxSynchronize")
    equal(list((c_uint * 4).from_address(pinned)), [value] * 4)
    d.call("cuMemFreeHost", c_void_p(pinned))
d.call("cuCtxSetCurrent", None)
for value in (5, 6):
    context = create()
    write(value)
    d.call("cuCtxDestroy_v2", context)
""")  # fmt: skip
