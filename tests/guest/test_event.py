"""Events: complete or not, times, ordering streams."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.stream_program import PRELUDE


def test_query_and_synchronize(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
s, number = stream(), alloc(4)
e, later = event(), event(2)
ok(driver.cuEventQuery(e)); ok(driver.cuEventSynchronize(e))  # never recorded: complete
ok(launch(s, number, 1))
ok(driver.cuEventRecord(e, s))
hold(s)
ok(launch(s, number, 1))
ok(driver.cuEventRecord(later, s))
ok(driver.cuEventSynchronize(e))
ok(driver.cuEventQuery(e))
for _ in range(20): same(driver.cuEventQuery(later), NOT_READY)
threading.Timer(0.1, let_go).start()
ok(driver.cuEventSynchronize(later))
ok(driver.cuEventQuery(later))
ok(driver.cuStreamQuery(s))
same(read(number), 2)
hold(s)
ok(driver.cuEventRecord(e, s))  # recorded again: waits for the new place
same(driver.cuEventQuery(e), NOT_READY)
let_go()
ok(driver.cuEventSynchronize(e))
""",
    )


def test_waiting_streams(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
a, b, number = stream(), stream(), alloc(4)
e = event(2)
ok(driver.cuStreamWaitEvent(b, e, 0))  # never recorded: nothing to wait for
ok(driver.cuStreamQuery(b))
hold(a)
ok(driver.cuEventRecord(e, a))
ok(driver.cuStreamWaitEvent(a, e, 0))  # its own stream
ok(driver.cuStreamWaitEvent(b, e, 0))
ok(launch(b, number, 4))
time.sleep(0.02)
same(driver.cuStreamQuery(b), NOT_READY)
ok(driver.cuEventDestroy_v2(e))  # the wait stands
let_go()
ok(driver.cuStreamSynchronize(b))
same(read(number), 4)
ok(driver.cuEventRecord(event(), None)); ok(driver.cuEventRecord(event(), PER_THREAD))
""",
    )


def test_elapsed_time(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
s = stream()
start, stop, untimed, never = event(), event(), event(2), event()
ms = c_float(-1)
def elapsed(a, b):
    return driver.cuEventElapsedTime(byref(ms), a, b)
ok(driver.cuEventRecord(start, s))
hold(s)
ok(driver.cuEventRecord(stop, s))
ok(driver.cuEventRecord(untimed, s))
same(elapsed(start, stop), NOT_READY)
same(elapsed(start, never), INVALID_HANDLE)
same(elapsed(start, untimed), INVALID_HANDLE)
ok(driver.cuEventSynchronize(start))
time.sleep(0.1)
let_go()
ok(driver.cuEventSynchronize(stop))
ok(elapsed(start, stop))
assert 80 < ms.value < 5000, ms.value
ok(elapsed(stop, start))
assert -5000 < ms.value < -80, ms.value
ok(elapsed(start, start)); same(ms.value, 0)
""",
    )


def test_flags(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
out = c_void_p()
for flags in (0, 1, 2, 3): ok(driver.cuEventCreate(byref(out), flags))
same(driver.cuEventCreate(byref(out), 8), INVALID_VALUE)
same(driver.cuEventCreate(byref(out), 4), INVALID_VALUE)  # interprocess needs DISABLE_TIMING
same(driver.cuEventCreate(None, 0), INVALID_VALUE)
e, s = event(), stream()
same(driver.cuEventRecordWithFlags(e, s, 2), INVALID_VALUE)
same(driver.cuEventRecordWithFlags(e, s, 1), ILLEGAL_STATE)  # external: only while capturing
ok(driver.cuEventRecord(e, s))
same(driver.cuStreamWaitEvent(s, e, 1), ILLEGAL_STATE)
same(driver.cuStreamWaitEvent(s, e, 2), INVALID_VALUE)
""",
    )


def test_a_fault_shows_to_those_who_poll(host: Host, transport: str) -> None:
    """A faulted context completes nothing: polls must find that out by themselves."""
    for poll in ("driver.cuEventQuery(e)", "driver.cuStreamQuery(s)"):
        host.run_python(
            transport,
            PRELUDE
            + f"""
s, e = stream(), event(2)
ok(launch(s, c_uint64(64), 1))  # no such address
ok(driver.cuEventRecord(e, s))
results = []
def poll():
    results.append({poll})
    return results[-1] not in (0, NOT_READY)
until(poll, "the fault")
same(results[-1], 700)
assert 0 not in results, "complete, though its stream faulted"
same(driver.cuStreamSynchronize(s), 700); same(driver.cuEventSynchronize(e), 700)
same(driver.cuMemAlloc_v2(byref(c_uint64()), c_size_t(64)), 700)
""",
        )


def test_stale_events(host: Host, transport: str) -> None:
    """Undefined in CUDA; here a stale handle is recognised."""
    host.run_python(
        transport,
        PRELUDE
        + """
e = event()
ok(driver.cuEventDestroy_v2(e))
same(driver.cuEventQuery(e), INVALID_HANDLE)
same(driver.cuEventDestroy_v2(e), INVALID_HANDLE)
same(driver.cuEventRecord(e, None), INVALID_HANDLE)
""",
    )


def test_events_of_other_threads(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
s, number = stream(), alloc(4)
events = [event() for _ in range(50)]
done = []
def record():
    driver.cuCtxSetCurrent(context)
    for e in events:
        ok(launch(s, number, 1))
        ok(driver.cuEventRecord(e, s))
    done.append(True)
t = threading.Thread(target=record); t.start(); t.join(30)
assert done
for e in reversed(events): ok(driver.cuEventSynchronize(e))
same(read(number), 50)
""",
    )
