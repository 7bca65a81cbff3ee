"""Memory and events shared between programs: CUDA's interprocess calls, between two sessions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.conftest import ROOT, Host
from tests.guest.test_memory import PRELUDE, VMM

INVALID_HANDLE = 400

# What both programs of a test can do. They talk in lines: say() and hear().
TALK = """
INVALID_HANDLE, NOT_READY, INVALID_CONTEXT = 400, 600, 201
Handle = ctypes.c_ubyte * 64
INTERPROCESS = 4 | 2                                   # with timing disabled
def pattern(size):                                     # the same in every process
    return (bytes(range(251)) * (size // 251 + 1))[:size]
def say(*words):
    print(*words, flush=True)
def hear():
    return sys.stdin.readline().split()
def export_memory(address):
    handle = Handle()
    d.call("cuIpcGetMemHandle", byref(handle), c_uint64(address))
    return bytes(handle).hex()
class MemHandle(ctypes.Structure):
    _fields_ = (("data", Handle),)
def handle_of(text):
    return MemHandle(Handle(*bytes.fromhex(text)))
def open_memory(text, flags=1):
    address = c_uint64()
    code = lib.cuIpcOpenMemHandle_v2(byref(address), handle_of(text), c_uint(flags))
    return address.value if code == 0 else -code
def new_event(flags=INTERPROCESS):
    event = c_void_p()
    d.call("cuEventCreate", byref(event), c_uint(flags))
    return event
def export_event(event):
    handle = Handle()
    d.call("cuIpcGetEventHandle", byref(handle), event)
    return bytes(handle).hex()
def open_event(text):
    event = c_void_p()
    code = lib.cuIpcOpenEventHandle(byref(event), handle_of(text))
    return event if code == 0 else -code
"""


class Talker:
    """One program of a test."""

    def __init__(self, host: Host, transport: str, text: str, **variables: str) -> None:
        fds = tuple(int(fd) for fd in variables.get("PASS_FDS", "").split(",") if fd)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + VMM + TALK + text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=fds,
            env=dict(host.client_environment(transport), PYTHONPATH=str(ROOT), **variables),
        )

    def hear(self) -> str:
        """The next line; fails with what the program complained of."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate(timeout=30)
            raise AssertionError(f"ended with {self.process.returncode}:\n{errors}")
        return line.strip()

    def say(self, *words: str) -> None:
        """A line for the program."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Waits until it has ended well."""
        out, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, out + errors


@contextmanager
def two(host: Host, transport: str, one: str, other: str) -> Iterator[tuple[Talker, Talker]]:
    """Two programs, ended in any case."""
    talkers = Talker(host, transport, one), Talker(host, transport, other)
    try:
        yield talkers
        for talker in talkers:
            talker.end()
    finally:
        for talker in talkers:
            if talker.process.poll() is None:
                talker.process.kill()
                talker.process.wait()


def relay(source: Talker, target: Talker) -> None:
    """One line from one program to the other."""
    target.say(source.hear())


def test_memory_is_shared(host: Host, transport: str) -> None:
    """One allocates, another reads and writes it; each sees the other's."""
    exporter = """
size = 5 << 20
a = d.alloc(size)
small = [d.alloc(1000) for _ in range(5)]
data = pattern(size)
d.upload(a, data)
d.upload(small[3], b"small" * 200)
d.synchronize()
say(export_memory(a), export_memory(small[3]))
equal(export_memory(a), export_memory(a))
equal(open_memory(export_memory(a)), -INVALID_CONTEXT)   # as the driver: not in the same process
equal(d.attribute(10, a), 1)                             # IS_LEGACY_CUDA_IPC_CAPABLE
hear()
equal(d.download(a, size), b"\\x77" * 1000 + data[1000:])
equal(d.download(small[3], 1000), b"tiny!" * 200)
d.upload(a + size - 4, b"last")
d.synchronize()
say("again")
hear()
d.free(a)
d.synchronize()
"""
    importer = """
size = 5 << 20
big_handle, small_handle = hear()
a = open_memory(big_handle)
assert a > 0, a
equal(d.download(a, size), pattern(size))
equal(open_memory(big_handle), a)                        # the same again, counted
base, length = c_uint64(), c_size_t()
d.call("cuMemGetAddressRange_v2", byref(base), byref(length), c_uint64(a + 77))
equal((base.value, length.value), (a, size))
equal((d.attribute(2, a), d.attribute(9, a)), (DEVICE, 0))
s = open_memory(small_handle)
equal(d.download(s, 1000), b"small" * 200)
own = d.alloc(1000)
d.upload(own, b"\\x77" * 1000)
d.call("cuMemcpyDtoDAsync_v2", a, own, 1000, None)
d.upload(s, b"tiny!" * 200)
d.launch(d.function("add_one"), 1, 1, c_uint64(own), c_uint(1))
d.synchronize()
say("written")
hear()
equal(d.download(a + size - 4, 4), b"last")
equal(lib.cuMemFree_v2(c_uint64(a)), INVALID_VALUE)
handle = Handle()
equal(lib.cuIpcGetMemHandle(byref(handle), c_uint64(a)), INVALID_VALUE)
d.call("cuIpcCloseMemHandle", c_uint64(a))
equal(d.download(a, 4), b"\\x77" * 4)                     # still open once
d.call("cuIpcCloseMemHandle", c_uint64(a))
equal(lib.cuIpcCloseMemHandle(c_uint64(a)), INVALID_VALUE)
value = c_uint64()
equal(lib.cuPointerGetAttribute(byref(value), 2, c_uint64(a)), INVALID_VALUE)
d.call("cuIpcCloseMemHandle", c_uint64(s))
say("closed")
"""
    with two(host, transport, exporter, importer) as (one, other):
        relay(one, other)
        relay(other, one)
        relay(one, other)
        relay(other, one)


def test_what_cannot_be_shared_or_opened(host: Host, transport: str) -> None:
    """Refused at once, with the driver's codes."""
    host.run_python(transport, PRELUDE + VMM + TALK + """
handle = Handle()
get = lambda address: lib.cuIpcGetMemHandle(byref(handle), c_uint64(address))
equal(get(0x1234), INVALID_VALUE)
equal(get(d.pinned(4096)), INVALID_VALUE)
address = c_uint64()
d.call("cuMemAllocAsync", byref(address), 4096, None)
equal(get(address.value), INVALID_VALUE)
equal(open_memory("00" * 64), -INVALID_VALUE)            # no handle at all
import struct
made_up = struct.pack("<QII16s32x", 0x3130455241485347, 1, 0, os.urandom(16)).hex()
equal(open_memory(made_up), -INVALID_HANDLE)             # nobody's
as_event = struct.pack("<QII16s32x", 0x3130455241485347, 2, 0, os.urandom(16)).hex()
equal(open_event(as_event), -INVALID_HANDLE)
equal(open_event(made_up), -INVALID_VALUE)
equal(open_memory(export_memory(d.alloc(4096)), 8), -INVALID_VALUE)
event = c_void_p()
equal(lib.cuEventCreate(byref(event), c_uint(4)), INVALID_VALUE)     # interprocess with timing
equal(lib.cuIpcGetEventHandle(byref(handle), new_event(2)), INVALID_HANDLE)
a = d.alloc(4096)
stale = export_memory(a)
d.free(a)
assert open_memory(stale) < 0
""", PYTHONPATH=str(ROOT))  # fmt: skip


def test_events_order_work_between_programs(host: Host, transport: str) -> None:
    """A waits on its GPU work for B's, in both directions, without either program waiting."""
    exporter = """
n = 1 << 20
a = d.alloc(4 * n)
add = d.function("add_one")
ready, taken = new_event(), new_event()
say(export_memory(a), export_event(ready), export_event(taken))
equal(hear(), ["open"])
s = d.stream()
values = c_uint64(a), c_uint(n)
places = (c_void_p * 2)(*[ctypes.addressof(each) for each in values])
def add_one(times):
    for _ in range(times):
        d.call("cuLaunchKernel", add, n // 256, 1, 1, 256, 1, 1, 0, s, places, None)
for turn in range(5):
    add_one(3)
    d.call("cuEventRecord", ready, s)
    say("recorded")
    equal(hear(), ["recorded"])
    d.call("cuStreamWaitEvent", s, taken, c_uint(0))
d.call("cuStreamSynchronize", s)
equal(lib.cuEventQuery(ready), SUCCESS)
d.call("cuEventSynchronize", taken)
equal(set((c_uint * n).from_buffer_copy(d.download(a, 4 * n))), {20})
say("done")
equal(hear(), ["bye"])
d.call("cuEventDestroy_v2", ready)
"""
    importer = """
n = 1 << 20
memory, first, second = hear()
a, ready, taken = open_memory(memory), open_event(first), open_event(second)
assert a > 0
equal(lib.cuEventQuery(ready), SUCCESS)                  # never recorded
add = d.function("add_one")
s = d.stream()
values = c_uint64(a), c_uint(n)
places = (c_void_p * 2)(*[ctypes.addressof(each) for each in values])
say("open")
for turn in range(5):
    equal(hear(), ["recorded"])
    d.call("cuStreamWaitEvent", s, ready, c_uint(0))
    copy = d.alloc(4 * n)
    d.call("cuMemcpyDtoDAsync_v2", copy, a, 4 * n, s)
    d.call("cuLaunchKernel", add, n // 256, 1, 1, 256, 1, 1, 0, s, places, None)
    d.call("cuEventRecord", taken, s)
    say("recorded")
    d.call("cuEventSynchronize", taken)
    equal(lib.cuEventQuery(taken), SUCCESS)
    equal(set((c_uint * n).from_buffer_copy(d.download(copy, 4 * n))), {4 * turn + 3})
milliseconds = ctypes.c_float()
equal(lib.cuEventElapsedTime(byref(milliseconds), ready, taken), INVALID_HANDLE)
equal(hear(), ["done"])
d.call("cuEventDestroy_v2", ready)
d.call("cuIpcCloseMemHandle", c_uint64(a))
say("bye")
"""
    with two(host, transport, exporter, importer) as (one, other):
        relay(one, other)
        relay(other, one)
        for _ in range(5):
            relay(one, other)
            relay(other, one)
        relay(one, other)
        relay(other, one)


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
data = Handle()
d.call("cuMemPoolExportPointer", byref(data), a)
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


def test_another_tenants_handles_mean_nothing(host: Host) -> None:
    """Clients over TCP and over the socket are different tenants, also on one GPU."""
    text = """
print(export_memory(d.alloc(4096)), export_event(new_event()), flush=True)
sys.stdin.readline()
"""
    owner = Talker(host, "shm", text)
    try:
        memory, event = owner.hear().split()
        stranger = (
            PRELUDE
            + VMM
            + TALK
            + f"""
equal(open_memory({memory!r}), -INVALID_HANDLE)
equal(open_event({event!r}), -INVALID_HANDLE)
"""
        )
        host.run_python("tcp", stranger, PYTHONPATH=str(ROOT))
        owner.say("end")
        owner.end()
    finally:
        if owner.process.poll() is None:
            owner.process.kill()
            owner.process.wait()
    gone = PRELUDE + VMM + TALK + f"equal(open_memory({memory!r}), -INVALID_HANDLE)"
    host.run_python("shm", gone, PYTHONPATH=str(ROOT))


def test_without_hostd_nothing_new_is_shared(own_host: Host) -> None:
    """The session itself goes on."""
    talker = Talker(own_host, "shm", """
a = d.alloc(4096)
say("up")
hear()
handle = Handle()
equal(lib.cuIpcGetMemHandle(byref(handle), c_uint64(a)), 304)    # CUDA_ERROR_OPERATING_SYSTEM
d.upload(a, b"fine")
equal(d.download(a, 4), b"fine")
""")  # fmt: skip
    assert talker.hear() == "up"
    own_host.stop()
    talker.say("go")
    talker.end()
