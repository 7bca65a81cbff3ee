"""Physical memory and pools that travel between programs as file descriptors."""

from __future__ import annotations

import os

from tests.conftest import ROOT, Host
from tests.guest.talker import Talker, relay, two
from tests.guest.test_memory import PRELUDE, VMM

EXPORT_BLOCK = """
prop.handles = 1                                         # POSIX_FILE_DESCRIPTOR
def block(size=unit):
    handle = c_uint64()
    d.call("cuMemCreate", byref(handle), c_size_t(size), byref(prop), c_uint64(0))
    return handle
def map_block(handle, size=unit):
    base = c_uint64()
    d.call("cuMemAddressReserve", byref(base), c_size_t(size), 0, 0, 0)
    d.call("cuMemMap", base, c_size_t(size), 0, handle, 0)
    d.call("cuMemSetAccess", base, c_size_t(size), byref(Access(1, 0, 3)), 1)
    return base.value
def export_block(handle):
    fd = c_int(-1)
    d.call("cuMemExportToShareableHandle", byref(fd), handle, c_int(1), c_uint64(0))
    return fd.value
def import_block(fd):
    handle = c_uint64()
    code = lib.cuMemImportFromShareableHandle(byref(handle), c_void_p(fd), c_int(1))
    return handle if code == 0 else -code
"""


def test_physical_memory_travels_as_a_descriptor(host: Host, transport: str) -> None:
    """PyTorch's way with expandable segments: the peer takes it with pidfd_getfd."""
    exporter = (
        EXPORT_BLOCK
        + """
handle = block()
fd = export_block(handle)
equal(os.get_inheritable(fd), False)
at = map_block(handle)
equal(d.download(at, unit), bytes(unit))
d.upload(at, pattern(unit))
d.synchronize()
unwritten = export_block(block())
say(os.getpid(), fd, unwritten)
hear()
equal(d.download(at, 100), b"\\x42" * 100)
same = import_block(fd)                                  # its own: allowed
other = map_block(same)
equal(d.download(other, 100), b"\\x42" * 100)
say("ok")
equal(hear(), ["closed"])
export_as = lambda kind: lib.cuMemExportToShareableHandle(
    byref(c_int()), handle, c_int(kind), c_uint64(0))
equal((export_as(8), export_as(2)), (NOT_SUPPORTED, INVALID_VALUE))
prop.handles = 0
private = block()
assert lib.cuMemExportToShareableHandle(byref(c_int()), private, c_int(1), c_uint64(0)) != SUCCESS
"""
    )
    importer = (
        EXPORT_BLOCK
        + """
pid, fd, unwritten = [int(word) for word in hear()]
pidfd = os.pidfd_open(pid)
def fetch(number):
    got = lib.syscall(438, c_int(pidfd), c_int(number), c_uint(0))
    assert got >= 0, number
    return got
lib.syscall = ctypes.CDLL(None).syscall
mine = fetch(fd)
handle = import_block(mine)
os.close(mine)
at = map_block(handle)
equal(d.download(at, unit), pattern(unit))
got = Prop()
d.call("cuMemGetAllocationPropertiesFromHandle", byref(got), handle)
equal((got.location_type, got.location), (1, 0))
clear = map_block(import_block(fetch(unwritten)))
equal(d.download(clear, unit), bytes(unit))              # nobody had written to it
d.upload(at, b"\\x42" * 100)
d.synchronize()
say("written")
equal(hear(), ["ok"])
d.call("cuMemUnmap", c_uint64(at), c_size_t(unit))
d.call("cuMemRelease", handle)
null = os.open("/dev/null", os.O_RDONLY)
equal(import_block(null), -INVALID_VALUE)
equal(import_block(os.memfd_create("x")), -INVALID_VALUE)
equal(import_block(1000), -INVALID_VALUE)
say("closed")
"""
    )
    with two(host, transport, exporter, importer) as (one, other):
        relay(one, other)
        relay(other, one)
        relay(one, other)
        relay(other, one)


def test_physical_memory_is_exported_without_a_context(host: Host, transport: str) -> None:
    """As NVIDIA's sample memMapIPCDrv does: its parent makes memory and uses no device."""
    program = (PRELUDE + VMM).replace(
        "d = Driver()\nlib = d.lib",
        """
class Bare(Driver):
    def __init__(self):
        self.lib = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
d = Bare()
lib = d.lib
""",
    )
    assert "Bare" in program
    text = """
fd = export_block(block())
handle = import_block(fd)
context = c_void_p()
d.call("cuDevicePrimaryCtxRetain", byref(context), 0)
d.call("cuCtxSetCurrent", context)
at = map_block(handle)
equal(d.download(at, unit), bytes(unit))
"""
    host.run_python(transport, program + EXPORT_BLOCK + text, PYTHONPATH=str(ROOT))


def test_closed_descriptors_are_collected(host: Host) -> None:
    """A program that exports and closes again and again does not use hostd up."""
    host.run_python("shm", PRELUDE + VMM + EXPORT_BLOCK + """
handle = block()
kept = export_block(handle)
for _ in range(3000):                                    # hostd keeps 1024 for a session
    os.close(export_block(handle))
mine = len(os.listdir("/proc/self/fd"))
assert mine < 200, mine
assert isinstance(import_block(kept), c_uint64)
""", PYTHONPATH=str(ROOT))  # fmt: skip


POOLS = """
class Properties(ctypes.Structure):
    _fields_ = (("type", c_int), ("handles", c_int), ("location_type", c_int), ("location", c_int),
                ("security", c_void_p), ("max", c_size_t), ("usage", ctypes.c_ushort),
                ("reserved", ctypes.c_ubyte * 54))
import socket
"""


def test_pools_are_shared(host: Host, transport: str) -> None:
    """The pool's descriptor over a unix socket, then each pointer's 64 bytes."""
    ours, theirs = socketpair_numbers()
    exporter = (
        POOLS
        + """
pool, fd, a = c_void_p(), c_int(-1), c_uint64()
d.call("cuMemPoolCreate", byref(pool), byref(Properties(1, 1, 1, 0)))
d.call("cuMemPoolExportToShareableHandle", byref(fd), pool, c_int(1), c_uint64(0))
d.call("cuMemAllocFromPoolAsync", byref(a), c_size_t(1 << 20), pool, None)
d.upload(a.value, pattern(1 << 20))
d.synchronize()
import threading
data, answers = Handle(), []
# In a thread without a context: multiprocessing.Queue pickles in such a one.
export = lambda: answers.append(lib.cuMemPoolExportPointer(byref(data), a))
thread = threading.Thread(target=export)
thread.start(); thread.join()
equal(answers, [SUCCESS])
link = socket.socket(fileno=int(os.environ["PASS_FDS"]))
socket.send_fds(link, [bytes(data)], [fd.value])
os.close(fd.value)
say("sent")
equal(hear(), ["freed"])
equal(d.download(a.value, 4), b"back")
d.call("cuMemFreeAsync", a, None)
d.synchronize()
plain = c_uint64()
d.call("cuMemAllocAsync", byref(plain), c_size_t(4096), None)
assert lib.cuMemPoolExportPointer(byref(data), plain) != SUCCESS       # not from such a pool
"""
    )
    importer = (
        POOLS
        + """
link = socket.socket(fileno=int(os.environ["PASS_FDS"]))
equal(hear(), ["sent"])
data, fds, _, _ = socket.recv_fds(link, 64, 1)
pool, a = c_void_p(), c_uint64()
d.call("cuMemPoolImportFromShareableHandle", byref(pool), c_void_p(fds[0]), c_int(1), c_uint64(0))
d.call("cuMemPoolImportPointer", byref(a), pool, Handle(*data))
equal(d.download(a.value, 1 << 20), pattern(1 << 20))
d.upload(a.value, b"back")
d.synchronize()
d.call("cuMemFreeAsync", a, None)
d.synchronize()
b = c_uint64()
assert lib.cuMemAllocFromPoolAsync(byref(b), c_size_t(4096), pool, None) != SUCCESS
say("freed")
"""
    )
    talkers = (
        Talker(host, transport, exporter, PASS_FDS=str(ours)),
        Talker(host, transport, importer, PASS_FDS=str(theirs)),
    )
    try:
        relay(*talkers)
        relay(talkers[1], talkers[0])
        for talker in talkers:
            talker.end()
    finally:
        os.close(ours)
        os.close(theirs)
        for talker in talkers:
            if talker.process.poll() is None:
                talker.process.kill()
                talker.process.wait()


def socketpair_numbers() -> tuple[int, int]:
    """A connected pair, as descriptors that programs inherit."""
    import socket

    one, other = socket.socketpair()
    return one.detach(), other.detach()
