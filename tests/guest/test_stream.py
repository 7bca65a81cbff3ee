"""Streams: what they answer while busy and idle, and how the legacy stream orders them."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.stream_program import PRELUDE


def test_idle_and_busy(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
s = stream()
ok(driver.cuStreamQuery(s)); ok(driver.cuStreamSynchronize(s))
number = alloc(4)
hold(s)
ok(launch(s, number, 5))
for _ in range(50): same(driver.cuStreamQuery(s), NOT_READY)
let_go()
until(lambda: driver.cuStreamQuery(s) == 0, "the stream")
ok(driver.cuStreamQuery(s)); ok(driver.cuStreamSynchronize(s))
same(read(number), 5)
for _ in range(100): ok(launch(s, number, 1))
ok(driver.cuStreamSynchronize(s))
ok(driver.cuStreamQuery(s))
same(read(number), 105)
for _ in range(100): ok(launch(s, number, 1))
ok(driver.cuCtxSynchronize())
ok(driver.cuStreamQuery(s))
same(read(number), 205)
""",
    )


def test_what_a_stream_knows_of_itself(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
least, greatest = c_int(), c_int()
ok(driver.cuCtxGetStreamPriorityRange(byref(least), byref(greatest)))
assert least.value >= greatest.value
def created(flags, priority):
    handle, p, f = c_void_p(), c_int(99), c_uint(99)
    ok(driver.cuStreamCreateWithPriority(byref(handle), flags, priority))
    ok(driver.cuStreamGetPriority(handle, byref(p)))
    ok(driver.cuStreamGetFlags(handle, byref(f)))
    return f.value, p.value
same(created(0, 0), (0, 0))
same(created(1, greatest.value), (1, greatest.value))
same(created(1, greatest.value - 10), (1, greatest.value))
same(created(1, least.value + 10), (1, least.value))
out = c_void_p()
same(driver.cuStreamCreate(byref(out), 2), INVALID_VALUE)
same(driver.cuStreamCreate(None, 0), INVALID_VALUE)
ids = set()
for s in (stream(), stream(0), None, PER_THREAD):
    value, owner, device = c_uint64(), c_void_p(), c_int(9)
    ok(driver.cuStreamGetId(s, byref(value)))
    ids.add(value.value)
    ok(driver.cuStreamGetCtx(s, byref(owner)))
    same(owner.value, context.value)
    ok(driver.cuStreamGetDevice(s, byref(device)))
    same(device.value, 0)
same(len(ids), 4)
flags = c_uint(9)
ok(driver.cuStreamGetFlags(None, byref(flags))); same(flags.value, 0)
ok(driver.cuStreamGetFlags(PER_THREAD, byref(flags))); same(flags.value, 0)
""",
    )


def test_attributes(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
POLICY, PRIORITY = 3, 8
a, b = stream(), stream()
def get(s, which):
    value = (c_uint * 16)()
    result = driver.cuStreamGetAttribute(s, which, value)
    return value[0] if result == 0 else -result
def put(s, which, number):
    value = (c_uint * 16)(number)
    return driver.cuStreamSetAttribute(s, which, value)
ok(put(a, POLICY, 3))
same(get(a, POLICY), 3)
ok(driver.cuStreamCopyAttributes(b, a))
same(get(b, POLICY), 3)
same(put(a, 4, 1), INVALID_VALUE)
""",
    )


def test_the_legacy_stream_waits_for_blocking_streams(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
blocking, apart = stream(0), stream(1)
number = alloc(4)
hold(blocking)
ok(launch(blocking, number, 7))
same(driver.cuStreamQuery(None), NOT_READY)
same(driver.cuStreamQuery(None), NOT_READY)
ok(driver.cuStreamQuery(apart))
threading.Timer(0.2, let_go).start()
start = time.monotonic()
ok(driver.cuStreamSynchronize(None))
assert time.monotonic() - start > 0.1
same(driver.cuStreamQuery(blocking), 0, "covered by the legacy stream")
ok(driver.cuStreamQuery(None))
same(read(number), 7)
# and the other way round: work on a blocking stream follows work on the legacy stream
hold(None)
ok(launch(None, number, 1)); ok(launch(blocking, number, 1))
same(driver.cuStreamQuery(blocking), NOT_READY)
let_go()
ok(driver.cuStreamSynchronize(blocking))
same(read(number), 9)
ok(driver.cuStreamQuery(None))
hold(apart)
ok(driver.cuStreamSynchronize(None))
let_go()
""",
    )


def test_destroyed_while_busy(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
number = alloc(4)
s = stream()
hold(s)
ok(launch(s, number, 3))
ok(driver.cuStreamDestroy_v2(s))
let_go()
ok(driver.cuCtxSynchronize())
until(lambda: read(number) == 3, "work of a destroyed stream")
for _ in range(300):  # more than are ever alive at once
    s = stream()
    ok(launch(s, number, 1))
    ok(driver.cuStreamDestroy_v2(s))
until(lambda: read(number) == 303, "work of destroyed streams")
""",
    )


def test_whichever_context_is_current(host: Host, transport: str) -> None:
    """A stream works in its own context, also in a thread that has none or another."""
    host.run_python(
        transport,
        PRELUDE
        + """
s, e, number = stream(), event(), alloc(4)
ok(driver.cuStreamBeginCapture_v2(s, GLOBAL)); ok(launch(s, number, 1))
result, graph = end(s); ok(result)
executable = instantiate(c_void_p(graph))
other = c_void_p()
ok(driver.cuCtxCreate_v2(byref(other), 0, 0))
for current in (None, other):
    ok(driver.cuCtxSetCurrent(current))
    ok(driver.cuMemsetD8Async(number, 1, c_size_t(4), s))
    ok(driver.cuEventRecord(e, s))
    ok(driver.cuStreamWaitEvent(s, e, 0))
    ok(driver.cuGraphLaunch(executable, s))
    until(lambda: driver.cuStreamQuery(s) == 0, "the stream")
    ok(driver.cuEventSynchronize(e)); ok(driver.cuStreamSynchronize(s))
    ok(driver.cuCtxSetCurrent(context))
    same(read(number), 0x01010102)
ok(driver.cuCtxSetCurrent(None))
ok(driver.cuStreamDestroy_v2(s))
""",
    )


def test_stale_streams(host: Host, transport: str) -> None:
    """Undefined in CUDA; here a stale handle is recognised."""
    host.run_python(
        transport,
        PRELUDE
        + """
s = stream()
ok(driver.cuStreamDestroy_v2(s))
number = alloc(4)
for call in (driver.cuStreamQuery, driver.cuStreamSynchronize, driver.cuStreamDestroy_v2):
    same(call(s), INVALID_HANDLE)
same(launch(s, number, 1), INVALID_HANDLE)
same(driver.cuStreamDestroy_v2(None), INVALID_HANDLE)
same(driver.cuStreamDestroy_v2(LEGACY), INVALID_HANDLE)
""",
    )


def test_memory_operations_order_streams(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
a, b = stream(), stream()
word, number = alloc(16), alloc(4)
wide = c_uint64(word.value + 8)
ok(driver.cuStreamWaitValue64_v2(a, wide, c_uint64(1 << 40), 1))
ok(launch(a, number, 2))
ok(driver.cuStreamWriteValue32_v2(a, word, 5, 0))
ok(driver.cuStreamWaitValue32_v2(b, word, 5, 1))
ok(launch(b, number, 10))
time.sleep(0.02)
same(driver.cuStreamQuery(a), NOT_READY); same(driver.cuStreamQuery(b), NOT_READY)
c = stream()
class Write(ctypes.Structure):
    _fields_ = [("operation", c_uint), ("address", c_uint64), ("value", c_uint64),
                ("flags", c_uint), ("alias", c_uint64)]
operation = (c_uint64 * 6)()
ctypes.memmove(operation, byref(Write(5, wide.value, 1 << 40, 0, 0)), ctypes.sizeof(Write))
ok(driver.cuStreamBatchMemOp_v2(c, 1, operation, 0))
ok(driver.cuStreamSynchronize(b)); ok(driver.cuStreamQuery(a))
same(read(number), 12)
""",
    )


def test_many_threads_on_streams_of_their_own(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
numbers = [alloc(4) for _ in range(8)]
failures = []
def work(number):
    try:
        ok(driver.cuCtxSetCurrent(context))
        for turn in range(20):
            s = stream() if turn % 2 else PER_THREAD
            for _ in range(10): ok(launch(s, number, 1))
            ok(driver.cuStreamSynchronize(s))
            same(read(number), 10 * (turn + 1))
            if turn % 2: ok(driver.cuStreamDestroy_v2(s))
    except BaseException as failure:
        failures.append(failure)
threads = [threading.Thread(target=work, args=(n,)) for n in numbers]
for t in threads: t.start()
for t in threads: t.join(60)
assert not failures, failures
assert not any(t.is_alive() for t in threads)
""",
    )


def test_the_context_waits_for_a_stream_destroyed_meanwhile(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
import threading
s = stream()
number = alloc(4)
hold(s)
ok(launch(s, number, 5))
ok(driver.cuStreamDestroy_v2(s))
threading.Timer(0.3, let_go).start()
ok(driver.cuCtxSynchronize())
same(read(number), 5)
""",
    )
