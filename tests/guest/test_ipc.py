"""Memory and events shared between programs: CUDA's interprocess calls, between two sessions."""

from __future__ import annotations

from tests.conftest import ROOT, Host
from tests.guest.talker import TALK, Talker, relay, two
from tests.guest.test_memory import PRELUDE, VMM


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
