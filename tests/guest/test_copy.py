"""Copies as a program sees them: what arrives, when calls return, what is refused."""

from __future__ import annotations

import random

import pytest

from tests.conftest import ROOT, Host

PRELUDE = """
import ctypes, mmap, os, random, sys, threading
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from tests.guest.cuda import *
d = Driver()
lib = d.lib
def equal(a, b, what=""):
    if a != b:
        if isinstance(a, bytes) and isinstance(b, bytes):
            at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            raise AssertionError(f"{what}: {len(a)} and {len(b)} bytes differ first at {at}")
        raise AssertionError(f"{what}: {a!r} is not {b!r}")
"""

MIB = 1 << 20


def run(host: Host, transport: str, text: str, **variables: str) -> str:
    """Runs a program on a vGPU."""
    return host.run_python(transport, PRELUDE + text, PYTHONPATH=str(ROOT), **variables)


@pytest.mark.parametrize("threads", ["1", "4"])
def test_sizes_around_every_edge(host: Host, transport: str, threads: str) -> None:
    """Inline, one piece, one chunk, several chunks, several threads, more than the staging area."""
    run(host, transport, """
M = 1 << 20
sizes = [1, 2, 7, 8, 191, 192, 193, 4095, 4096, 4097, 65535, 65536, 65537,
         M - 1, M, M + 1, 2 * M - 1, 2 * M, 2 * M + 1,
         4 * M - 1, 4 * M, 4 * M + 1, 5 * M + 3, 9 * M + 1, 33 * M + 5]
a = d.alloc(max(sizes) + 64)
pinned = d.pinned(max(sizes) + 64)
s = d.stream()
for size in sizes:
    for shift in (0, 3):
        data = pattern(size, size)
        d.upload(a + shift, data)
        equal(d.download(a + shift, size), data, f"pageable {size}+{shift}")
        data = pattern(size, size + 1)
        write_host(pinned + shift, data)
        d.call("cuMemcpyHtoDAsync_v2", a + shift, pinned + shift, size, s)
        d.call("cuStreamSynchronize", s)
        equal(d.download(a + shift, size), data, f"pinned to device {size}+{shift}")
        write_host(pinned + shift, bytes(size))
        d.call("cuMemcpyDtoHAsync_v2", pinned + shift, a + shift, size, s)
        d.call("cuStreamSynchronize", s)
        equal(read_host(pinned + shift, size), data, f"device to pinned {size}+{shift}")
d.call("cuMemcpyHtoD_v2", c_uint64(a), None, c_size_t(0))
""", GPUPOOL_COPY_THREADS=threads)  # fmt: skip


def test_neighbours_stay_untouched(host: Host, transport: str) -> None:
    """A copy writes its bytes and nothing beside them."""
    run(host, transport, """
a = d.alloc(4 << 20)
for size in (1, 100, 192, 193, 5000, 70000, (1 << 20) + 1, (2 << 20) + 17):
    d.upload(a, b"\\x11" * (3 << 20))
    d.upload(a + 1000, b"\\x22" * size)
    beside = b"\\x11" * 10
    equal(d.download(a + 990, size + 20), beside + b"\\x22" * size + beside, f"device {size}")
    target = ctypes.create_string_buffer(b"\\x33" * (size + 20), size + 20)
    d.call("cuMemcpyDtoH_v2", ctypes.addressof(target) + 10, a + 1000, size)
    equal(target.raw, b"\\x33" * 10 + b"\\x22" * size + b"\\x33" * 10, f"host {size}")
""")  # fmt: skip


def test_source_may_change_when_the_call_returns(host: Host, transport: str) -> None:
    """From pageable memory a call returns once the source was copied, however long the queue."""
    run(host, transport, """
s = d.stream()
size = 3 << 20
blocks = [d.alloc(size) for _ in range(12)]
source = ctypes.create_string_buffer(size)
for i, block in enumerate(blocks):
    ctypes.memset(source, i + 1, size)
    d.call("cuMemcpyHtoDAsync_v2", c_uint64(block), source, c_size_t(size), s)
ctypes.memset(source, 255, size)
d.call("cuStreamSynchronize", s)
for i, block in enumerate(blocks):
    equal(d.download(block, size), bytes([i + 1]) * size, f"block {i}")
small = d.alloc(4 << 10)
for i in range(300):
    ctypes.memset(source, i % 251, 4096)
    d.call("cuMemcpyHtoDAsync_v2", c_uint64(small), source, c_size_t(4096 if i % 2 else 64), s)
d.call("cuStreamSynchronize", s)
equal(d.download(small, 4096), bytes([299 % 251]) * 4096)
""")  # fmt: skip


def test_data_has_landed_when_the_call_returns(host: Host, transport: str) -> None:
    """To pageable memory, also through the asynchronous call."""
    run(host, transport, """
s = d.stream()
a = d.alloc(8 << 20)
target = ctypes.create_string_buffer(8 << 20)
for size in (1, 4096, 1 << 20, 8 << 20):
    data = pattern(size)
    d.call("cuMemcpyHtoDAsync_v2", c_uint64(a), data, c_size_t(size), s)
    d.call("cuMemcpyDtoHAsync_v2", target, c_uint64(a), c_size_t(size), s)
    equal(target.raw[:size], data, f"{size}")
""")  # fmt: skip


def test_unified_copies(host: Host, transport: str) -> None:
    """cuMemcpy finds out what both addresses are."""
    run(host, transport, """
size = 300000
a, b, p, q = d.alloc(size), d.alloc(size), d.pinned(size), d.pinned(size)
h, g = ctypes.create_string_buffer(size), ctypes.create_string_buffer(size)
places = {"device": a, "pinned": p, "pageable": ctypes.addressof(h)}
others = {"device": b, "pinned": q, "pageable": ctypes.addressof(g)}
def put(kind, address, data):
    d.upload(address, data) if kind == "device" else write_host(address, data)
def get(kind, address):
    return d.download(address, size) if kind == "device" else read_host(address, size)
s = d.stream()
seed = 0
for source_kind, source in places.items():
    for kind, destination in others.items():
        for stream in (None, s):
            seed += 1
            data = pattern(size, seed)
            put(source_kind, source, data)
            put(kind, destination, bytes(size))
            d.synchronize()
            if stream is None:
                d.call("cuMemcpy", c_uint64(destination), c_uint64(source), c_size_t(size))
            else:
                d.call("cuMemcpyAsync", destination, source, size, stream)
                d.call("cuStreamSynchronize", stream)
            equal(get(kind, destination), data, f"{source_kind} to {kind}")
d.upload(a, pattern(size, 99))
d.call("cuMemcpyDtoD_v2", c_uint64(b), c_uint64(a), c_size_t(size))
equal(d.download(b, size), d.download(a, size))
d.call("cuMemcpyPeer", c_uint64(a), d.context, c_uint64(b), d.context, c_size_t(size))
""")  # fmt: skip


def test_batches(host: Host, transport: str) -> None:
    """Several copies in one call, between all kinds of memory; a bad one is named."""
    run(host, transport, """
class Attributes(ctypes.Structure):
    _fields_ = (("order", c_int), ("hints", c_int * 4), ("flags", c_uint))
size = 70000
s = d.stream()
a, b, p = d.alloc(size), d.alloc(size), d.pinned(size)
h, g = ctypes.create_string_buffer(pattern(size), size), ctypes.create_string_buffer(size)
data = pattern(size, 5)
write_host(p, data)
to = (c_uint64 * 2)(a, b)
frm = (c_uint64 * 2)(ctypes.addressof(h), p)
sizes = (c_size_t * 2)(size, size)
kinds, first = (Attributes * 2)(Attributes(1), Attributes(2)), (c_size_t * 2)(0, 1)
failed = c_size_t(7)
d.call("cuMemcpyBatchAsync", to, frm, sizes, 2, kinds, first, 2, byref(failed), s)
write_host(p, bytes(size))        # read during the call, as the second set of attributes asks
d.call("cuStreamSynchronize", s)
equal(d.download(a, size), h.raw)
equal(d.download(b, size), data)
back = (c_uint64 * 1)(ctypes.addressof(g))
d.call("cuMemcpyBatchAsync_v2", back, (c_uint64 * 1)(a), sizes, 1, kinds, first, 1, s)
d.call("cuStreamSynchronize", s)
equal(g.raw, h.raw)
to[1] = 0x1000
result = d.result("cuMemcpyBatchAsync", (c_uint64 * 2)(a, a), (c_uint64 * 2)(b, b),
                  (c_size_t * 2)(8, 1 << 30), 2, kinds, first, 2, byref(failed), s)
equal((result, failed.value), (INVALID_VALUE, 1))
failed.value = 7
first[1] = 0
result = d.result("cuMemcpyBatchAsync", to, frm, sizes, 2, kinds, first, 2, byref(failed), s)
equal((result, failed.value), (INVALID_VALUE, 2 ** 64 - 1))
equal(d.result("cuMemcpyBatchAsync_v2", to, frm, sizes, 1, kinds, first, 1, None), INVALID_VALUE)
""")  # fmt: skip


def test_batches_of_boxes(host: Host, transport: str) -> None:
    """Pointers with and without pitches, arrays, elements of several bytes; a bad one is named."""
    run(host, transport, """
class Pointer(ctypes.Structure):
    _fields_ = (("address", c_uint64), ("row", c_size_t), ("layer", c_size_t), ("hint", c_int * 2))
class InArray(ctypes.Structure):
    _fields_ = (("array", c_void_p), ("x", c_size_t), ("y", c_size_t), ("z", c_size_t))
class Either(ctypes.Union):
    _fields_ = (("pointer", Pointer), ("array", InArray))
class Operand(ctypes.Structure):
    _fields_ = (("type", c_int), ("op", Either))
class Box(ctypes.Structure):
    _fields_ = (("source", Operand), ("destination", Operand), ("extent", c_size_t * 3),
                ("order", c_int), ("flags", c_uint))
def at(address, row=0, layer=0):
    return Operand(1, Either(pointer=Pointer(address, row, layer)))
def inside(array, x=0, y=0):
    return Operand(2, Either(array=InArray(array, x, y, 0)))
def box(source, destination, *extent, order=1):
    return Box(source, destination, (c_size_t * 3)(*extent), order, 0)
s = d.stream()
size = 64 * 32
a, b, p = d.alloc(size), d.alloc(size), d.pinned(size)
data = pattern(size)
write_host(p, data)
g = ctypes.create_string_buffer(size)
boxes = (Box * 2)(box(at(p), at(a), 64, 32, 1), box(at(p, 64), at(b, 16), 16, 32, 1, order=2))
failed = c_size_t(7)
d.call("cuMemcpy3DBatchAsync", 2, boxes, byref(failed), 0, s)
d.call("cuStreamSynchronize", s)
equal(d.download(a, size), data)
column = b"".join(data[row * 64:row * 64 + 16] for row in range(32))
equal(d.download(b, 512), column)
class Description(ctypes.Structure):
    _fields_ = (("width", c_size_t), ("height", c_size_t), ("format", c_uint), ("channels", c_uint))
array = c_void_p()
d.call("cuArrayCreate_v2", byref(array), byref(Description(16, 32, 0x03, 1)))    # 32-bit elements
boxes = (Box * 1)(box(at(a), inside(array.value), 16, 32, 1))
d.call("cuMemcpy3DBatchAsync_v2", 1, boxes, 0, s)
boxes = (Box * 1)(box(inside(array.value, 4, 2), at(ctypes.addressof(g), 8), 8, 4, 1))
d.call("cuMemcpy3DBatchAsync_v2", 1, boxes, 0, s)
d.call("cuStreamSynchronize", s)
equal(g.raw[:128], b"".join(data[row * 64 + 16:row * 64 + 48] for row in range(2, 6)))
bad = (Box * 2)(box(at(a), at(b), 64, 32, 1), box(at(a, 8), at(b), 64, 32, 1))   # rows too short
equal(d.result("cuMemcpy3DBatchAsync", 2, bad, byref(failed), 0, s), INVALID_VALUE)
equal(failed.value, 1)
bad = (Box * 1)(box(at(a), at(b), 64, 0, 1))
equal(d.result("cuMemcpy3DBatchAsync_v2", 1, bad, 0, s), INVALID_VALUE)
equal(d.result("cuMemcpy3DBatchAsync_v2", 1, boxes, 0, None), INVALID_VALUE)     # legacy stream
equal(d.result("cuMemcpy3DBatchAsync_v2", 1, boxes, 1, s), INVALID_VALUE)
""")  # fmt: skip


def test_bad_addresses_are_refused_at_once(host: Host, transport: str) -> None:
    """As the driver does for what it can see; and the session goes on."""
    run(host, transport, """
a = d.alloc(4096)
data = bytes(8192)
target = ctypes.create_string_buffer(8192)
equal(lib.cuMemcpyHtoD_v2(c_uint64(0x1000), data, c_size_t(10)), INVALID_VALUE)
equal(lib.cuMemcpyHtoD_v2(c_uint64(a), None, c_size_t(10)), INVALID_VALUE)
equal(lib.cuMemcpyDtoH_v2(target, c_uint64(0x1000), c_size_t(10)), INVALID_VALUE)
equal(lib.cuMemcpyDtoHAsync_v2(target, c_uint64(a), c_size_t(1 << 40), None), INVALID_VALUE)
equal(lib.cuMemsetD32_v2(c_uint64(a + 1), 0, c_size_t(1)), INVALID_VALUE)
equal(lib.cuMemsetD8_v2(c_uint64(0x1000), 0, c_size_t(1)), INVALID_VALUE)
equal(lib.cuMemcpyDtoD_v2(c_uint64(a), c_uint64(0x99), c_size_t(1)), INVALID_VALUE)
d.free(a)
equal(lib.cuMemcpyHtoD_v2(c_uint64(a), data, c_size_t(10)), INVALID_VALUE)
b = d.alloc(8192)
d.upload(b, b"z" * 8192)
equal(d.download(b, 8192), b"z" * 8192)
""")  # fmt: skip


def test_memsets(host: Host, transport: str) -> None:
    """All widths, linear and with rows, with and without a stream."""
    run(host, transport, """
a = d.alloc(1 << 16)
s = d.stream()
for width, name, value in ((1, "D8", 0xab), (2, "D16", 0x1234), (4, "D32", 0x89abcdef)):
    element = value.to_bytes(width, "little")
    for suffix, tail in (("_v2", ()), ("Async", (s,))):
        d.call("cuMemsetD8_v2", c_uint64(a), c_int(0x55), c_size_t(1 << 16))
        d.synchronize()
        d.call(f"cuMemset{name}{suffix}", c_uint64(a + 8), c_uint(value), c_size_t(1000), *tail)
        d.synchronize()
        expected = b"\\x55" * 8 + element * 1000 + b"\\x55" * 8016
        equal(d.download(a, 8024), expected[:8024], name)
        d.call("cuMemsetD8_v2", c_uint64(a), c_int(0x55), c_size_t(1 << 16))
        d.synchronize()
        d.call(f"cuMemsetD2{name}{suffix}", a, 256, value, 20, 5, *tail)
        d.synchronize()
        row = element * 20 + b"\\x55" * (256 - 20 * width)
        equal(d.download(a, 256 * 5), row * 5, "D2" + name)
""")  # fmt: skip


def test_boxes(host: Host, transport: str) -> None:
    """2D and 3D copies against the same done on bytes, over random shapes."""
    seed = random.randrange(1 << 30)  # noqa: S311
    run(host, transport, f"random.seed({seed}); print('seed', {seed})" + """
M = 1 << 20
size = 9 * M
a, p = d.alloc(size), d.pinned(size)
h = ctypes.create_string_buffer(size)
device = bytearray(pattern(size))
d.upload(a, bytes(device))
def model(target, to, source, frm, w, hh, dd):
    for z in range(dd):
        for y in range(hh):
            i = ((to[2] + z) * to[4] + to[1] + y) * to[3] + to[0]
            j = ((frm[2] + z) * frm[4] + frm[1] + y) * frm[3] + frm[0]
            target[i:i + w] = source[j:j + w]
def shape(w, hh, dd):
    x, y, z, more = [random.randrange(n) for n in ((9, 1, 1, 1) if w >= M - 1 else (9, 3, 2, 3))]
    return (x, y, z, x + w + random.randrange(40), y + hh + more)
# Whole, by slices, by rows, by parts of a row: each at least once, whatever the seed.
fixed = [(100, 7, 3), (4096, 100, 7), (200000, 6, 2), (M + 77, 1, 2), (M - 1, 2, 1), (3, 1, 5),
         (M + 77, 2, 1)]
for turn in range(80):
    if turn < 2 * len(fixed):
        w, hh, dd = fixed[turn // 2]
    else:
        w = random.choice([1, 3, 64, 500, 4096, 200000, M, M + 77])
        dd = random.choice([1, 1, 2, 3])
        hh = random.choice([1, 2, 5, 40])
    d_shape, h_shape = shape(w, hh, dd), shape(w, hh, dd)
    if max(((s[2] + dd) * s[4] + s[1] + hh) * s[3] + w for s in (d_shape, h_shape)) > size:
        assert turn >= 2 * len(fixed)
        continue
    pinned = turn >= 2 * len(fixed) and random.random() < 0.5
    address = p if pinned else ctypes.addressof(h)
    upload = turn % 2 == 0
    content = pattern(size, turn)
    write_host(address, content)
    c = Memcpy3D()
    side = "dst_" if upload else "src_"
    other = "src_" if upload else "dst_"
    for prefix, sh in ((side, d_shape), (other, h_shape)):
        for name, value in zip(("x", "y", "z", "pitch", "height"), sh):
            setattr(c, prefix + name, value)
    setattr(c, side + "type", DEVICE); setattr(c, side + "device", a)
    unified = pinned and random.random() < 0.5
    setattr(c, other + "type", UNIFIED if unified else HOST)
    setattr(c, other + ("device" if unified else "host"), address)
    c.width, c.height, c.depth = w, hh, dd
    name = "cuMemcpy3D_v2"
    arguments = []
    if dd == 1 and random.random() < 0.6:
        t = Memcpy2D()
        for field, _ in Memcpy2D._fields_:
            setattr(t, field, getattr(c, field))
        if d_shape[2] or h_shape[2]:
            continue
        c, name = t, "cuMemcpy2D_v2"
    d.call(name, byref(c))
    if upload:
        model(device, d_shape, content, h_shape, w, hh, dd)
        equal(d.download(a, size), bytes(device), f"turn {turn} to device {w} {hh} {dd}")
    else:
        expected = bytearray(content)
        model(expected, h_shape, device, d_shape, w, hh, dd)
        what = f"turn {turn} to host {w} {hh} {dd} pinned {pinned}"
        equal(read_host(address, size), bytes(expected), what)
""")  # fmt: skip


def test_threads_copy_at_once(host: Host, transport: str) -> None:
    """Large copies of several threads share the helpers and the staging area."""
    run(host, transport, """
errors = []
def work(seed):
    try:
        d.call("cuCtxSetCurrent", d.context)
        s = d.stream()
        size = (6 << 20) + seed * 12345
        a = d.alloc(size)
        target = ctypes.create_string_buffer(size)
        for turn in range(4):
            data = pattern(size, seed * 100 + turn)
            d.call("cuMemcpyHtoDAsync_v2", c_uint64(a), data, c_size_t(size), s)
            d.call("cuMemcpyDtoHAsync_v2", target, c_uint64(a), c_size_t(size), s)
            equal(target.raw, data, f"thread {seed} turn {turn}")
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
assert not errors, errors
""", GPUPOOL_COPY_THREADS="4")  # fmt: skip


def test_order_on_one_stream(host: Host, transport: str) -> None:
    """Copies, memsets and copies on the device take effect in the order of the calls."""
    run(host, transport, """
s = d.stream()
a, b = d.alloc(1 << 20), d.alloc(1 << 20)
p = d.pinned(1 << 20)
for turn in range(20):
    data = pattern(1 << 20, turn)
    d.call("cuMemcpyHtoDAsync_v2", c_uint64(a), data, c_size_t(1 << 20), s)
    d.call("cuMemsetD8Async", c_uint64(a + 100), c_int(turn), c_size_t(1000), s)
    d.call("cuMemcpyDtoDAsync_v2", c_uint64(b), c_uint64(a), c_size_t(1 << 20), s)
    d.call("cuMemsetD8Async", c_uint64(a), c_int(0xff), c_size_t(1 << 20), s)
    d.call("cuMemcpyDtoHAsync_v2", c_void_p(p), c_uint64(b), c_size_t(1 << 20), s)
    d.call("cuMemcpyHtoDAsync_v2", c_uint64(a), c_void_p(p), c_size_t(1 << 20), s)
    d.call("cuStreamSynchronize", s)
    expected = data[:100] + bytes([turn]) * 1000 + data[1100:]
    equal(read_host(p, 1 << 20), expected, f"turn {turn}")
    equal(d.download(a, 1 << 20), expected, f"pinned there and back, turn {turn}")
""")  # fmt: skip


def test_arrays(host: Host, transport: str) -> None:
    """Copies from and to CUDA arrays."""
    run(host, transport, """
class Descriptor(ctypes.Structure):
    _fields_ = (("width", c_size_t), ("height", c_size_t), ("format", c_uint), ("channels", c_uint))
array = c_void_p()
d.call("cuArrayCreate_v2", byref(array), byref(Descriptor(100, 0, 0x20, 1)))    # 100 floats
data = pattern(400)
d.call("cuMemcpyHtoA_v2", array, c_size_t(0), data, c_size_t(400))
target = ctypes.create_string_buffer(400)
d.call("cuMemcpyAtoH_v2", target, array, c_size_t(40), c_size_t(200))
equal(target.raw[:200], data[40:240])
a = d.alloc(400)
d.call("cuMemcpyAtoD_v2", c_uint64(a), array, c_size_t(0), c_size_t(400))
equal(d.download(a, 400), data)
got = Descriptor()
d.call("cuArrayGetDescriptor_v2", byref(got), array)
equal((got.width, got.format), (100, 0x20))
d.call("cuArrayDestroy", array)
plane = c_void_p()
d.call("cuArrayCreate_v2", byref(plane), byref(Descriptor(64, 32, 0x20, 2)))   # rows of 512 bytes
data = pattern(512 * 32)
c = Memcpy2D(src_type=HOST, src_host=ctypes.cast(data, c_void_p), src_pitch=512,
             dst_type=ARRAY, dst_array=plane, width=512, height=32)
d.call("cuMemcpy2D_v2", byref(c))
out = ctypes.create_string_buffer(256 * 16)
c = Memcpy2D(src_type=ARRAY, src_array=plane, src_x=128, src_y=8, dst_type=HOST,
             dst_host=ctypes.cast(out, c_void_p), dst_pitch=256, width=256, height=16)
d.call("cuMemcpy2D_v2", byref(c))
equal(out.raw, b"".join(data[(8 + y) * 512 + 128:(8 + y) * 512 + 384] for y in range(16)))
d.call("cuArrayDestroy", plane)
equal(lib.cuMemcpy2D_v2(byref(c)) != SUCCESS, True)
""")  # fmt: skip


def test_capture(host: Host, transport: str) -> None:
    """What a graph can hold is captured; what it cannot is refused and ends the capture."""
    run(host, transport, """
s = d.stream()
a, b = d.alloc(1 << 20), d.alloc(1 << 20)
source = ctypes.create_string_buffer(pattern(1 << 20), 1 << 20)
first = source.raw
graph, launchable = c_void_p(), c_void_p()
d.call("cuStreamBeginCapture_v2", s, 1)
d.call("cuMemcpyHtoDAsync_v2", c_uint64(a), source, c_size_t(100), s)
d.call("cuMemcpyHtoDAsync_v2", a + 100, ctypes.addressof(source) + 100, (1 << 20) - 100, s)
d.call("cuMemsetD8Async", c_uint64(a + 50), 7, c_size_t(100), s)
d.call("cuMemcpyDtoDAsync_v2", c_uint64(b), c_uint64(a), c_size_t(1 << 20), s)
d.call("cuStreamEndCapture", s, byref(graph))
d.call("cuGraphInstantiateWithFlags", byref(launchable), graph, c_uint64(0))
for turn in range(3):
    # Each launch copies what is there then.
    source.raw = first = bytes([turn]) + first[1:]
    d.call("cuMemsetD8_v2", c_uint64(b), 0, c_size_t(1 << 20))
    d.synchronize()
    d.call("cuGraphLaunch", launchable, s)
    d.call("cuStreamSynchronize", s)
    equal(d.download(b, 1 << 20), first[:50] + b"\\x07" * 100 + first[150:])
d.call("cuStreamBeginCapture_v2", s, 0)
address = c_uint64()
equal(lib.cuMemAlloc_v2(byref(address), c_size_t(4096)), CAPTURE_UNSUPPORTED)
equal(lib.cuStreamEndCapture(s, byref(graph)), CAPTURE_INVALIDATED)
equal(d.download(b, 10), first[:10])
""")  # fmt: skip


def test_helpers_leave_signals_and_idle_time_alone(host: Host) -> None:
    """Copy threads start with the first large copy, block every signal and sleep afterwards."""
    run(host, "shm", """
import time
def helpers():
    found = []
    for task in os.listdir("/proc/self/task"):
        if open(f"/proc/self/task/{task}/comm").read().strip() == "gpupool-copy":
            found.append(task)
    return found
a = d.alloc(8 << 20)
d.upload(a, bytes((1 << 20) - 1))
equal(helpers(), [])
d.upload(a, bytes(8 << 20))
found = helpers()
equal(len(found), 3)
for task in found:
    status = open(f"/proc/self/task/{task}/status").read()
    blocked = int(status.split("SigBlk:")[1].split()[0], 16)
    for signal in (1, 2, 10, 12, 14, 15, 17):
        assert blocked & (1 << (signal - 1)), (signal, hex(blocked))
def ticks(task):
    fields = open(f"/proc/self/task/{task}/stat").read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
before = [ticks(task) for task in found]
time.sleep(0.5)
equal([ticks(task) for task in found], before)
""", GPUPOOL_COPY_THREADS="4")  # fmt: skip
