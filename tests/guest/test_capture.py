"""Stream capture: what becomes a graph, which streams take part, and what a capture forbids."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.stream_program import PRELUDE


def test_captured_work_runs_when_launched(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
s, number = stream(), alloc(4)
same(status(s), NONE)
ok(driver.cuStreamBeginCapture_v2(s, GLOBAL))
same(status(s), ACTIVE)
for _ in range(3): ok(launch(s, number, 2))
ok(driver.cuMemsetD32Async(c_uint64(number.value), 0, c_size_t(0), s))
result, graph = end(s); ok(result)
same(status(s), NONE)
same(read(number), 0)
graph = c_void_p(graph)
count = c_size_t(99)
ok(driver.cuGraphGetNodes(graph, None, byref(count)))
same(count.value, 3)
executable = instantiate(graph)
ok(driver.cuGraphDestroy(graph))
for turn in range(1, 6):
    ok(driver.cuGraphLaunch(executable, s))
    ok(driver.cuStreamSynchronize(s))
    same(read(number), 6 * turn)
ok(driver.cuGraphExecDestroy(executable))
ok(launch(s, number, 1)); ok(driver.cuStreamSynchronize(s)); same(read(number), 31)
""",
    )


def test_identity(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
def info(s):
    state, number = c_int(-1), c_uint64(0)
    ok(driver.cuStreamGetCaptureInfo(s, byref(state), byref(number)))
    return state.value, number.value
a, b = stream(), stream()
same(info(a)[0], NONE)
ids = []
for s in (a, b, a):
    ok(driver.cuStreamBeginCapture_v2(s, THREAD_LOCAL))
    state, number = info(s)
    same(state, ACTIVE)
    ids.append(number)
    same(end(s)[0], 0)
same(len(set(ids)), 3)

number = alloc(4)
ok(driver.cuStreamBeginCapture_v2(a, THREAD_LOCAL))
state, identity, graph, nodes, count = c_int(), c_uint64(), c_void_p(), c_void_p(), c_size_t(9)
def detailed():
    outputs = (byref(state), byref(identity), byref(graph), byref(nodes), byref(count))
    return driver.cuStreamGetCaptureInfo_v2(a, *outputs)
ok(detailed())
same(state.value, ACTIVE); same(count.value, 0); assert graph.value
ok(launch(a, number, 1))
early = graph.value
ok(detailed())
same(graph.value, early); same(count.value, 1)
node = ctypes.cast(nodes, POINTER(c_void_p))[0]
kind = c_int(-1)
ok(driver.cuGraphNodeGetType(c_void_p(node), byref(kind))); same(kind.value, 0)
result, made = end(a); ok(result)
same(made, early, "the graph is the one that was being captured")
found = (c_void_p * 4)()
count = c_size_t(4)
ok(driver.cuGraphGetNodes(c_void_p(made), found, byref(count)))
same(count.value, 1); same(found[0], node)
""",
    )


def test_other_streams_join_and_leave(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
a, b, number, other = stream(), stream(), alloc(4), alloc(4)
fork, join = event(2), event(2)
ok(driver.cuStreamBeginCapture_v2(a, GLOBAL))
ok(launch(a, number, 1))
ok(driver.cuEventRecord(fork, a))
same(status(b), NONE)
ok(driver.cuStreamWaitEvent(b, fork, 0))
same(status(b), ACTIVE)
ok(launch(b, other, 10))
ok(launch(a, number, 1))
ok(driver.cuEventRecord(join, b))
ok(driver.cuStreamWaitEvent(a, join, 0))
ok(launch(a, other, 1))
result, graph = end(a); ok(result)
same(status(a), NONE); same(status(b), NONE)
ok(launch(b, number, 5)); ok(driver.cuStreamSynchronize(b)); same(read(number), 5)
executable = instantiate(c_void_p(graph))
hold(b)
ok(driver.cuGraphLaunch(executable, b))
same(driver.cuStreamQuery(b), NOT_READY)
let_go()
ok(driver.cuStreamSynchronize(b))
same((read(number), read(other)), (7, 11))
""",
    )


def test_a_stream_that_is_not_joined(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
a, b, number = stream(), stream(), alloc(4)
fork = event(2)
ok(driver.cuStreamBeginCapture_v2(a, RELAXED))
ok(driver.cuEventRecord(fork, a))
ok(driver.cuStreamWaitEvent(b, fork, 0))
ok(launch(b, number, 1))
result, graph = end(a)
same(result, UNJOINED); same(graph, None)
same(status(a), NONE); same(status(b), NONE)
ok(driver.cuStreamBeginCapture_v2(a, RELAXED))
ok(driver.cuEventRecord(fork, a)); ok(driver.cuStreamWaitEvent(b, fork, 0))
same(end(b)[0], UNMATCHED)  # only the stream that began it can end it
same(status(a), INVALID)
same(end(a), (INVALIDATED, None))
# A stream that is destroyed after it joined never comes back.
gone = stream()
ok(driver.cuStreamBeginCapture_v2(a, RELAXED))
ok(driver.cuEventRecord(fork, a)); ok(driver.cuStreamWaitEvent(gone, fork, 0))
ok(launch(gone, number, 1))
ok(driver.cuStreamDestroy_v2(gone))
same(status(a), ACTIVE)
same(end(a), (UNJOINED, None))
same(status(a), NONE); same(status(b), NONE)
ok(launch(a, number, 1)); ok(launch(b, number, 1))
ok(driver.cuCtxSynchronize()); assert read(number) in (1, 2)
""",
    )


def test_what_cannot_be_captured(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
s, number = stream(), alloc(4)
same(end(s)[0], ILLEGAL_STATE)
same(driver.cuStreamBeginCapture_v2(None, GLOBAL), UNSUPPORTED)
same(driver.cuStreamBeginCapture_v2(s, 7), INVALID_VALUE)
def broken_by(call):
    ok(driver.cuStreamBeginCapture_v2(s, RELAXED))
    result = call()
    state = status(s)
    ending = end(s)
    same(status(s), NONE)
    ok(launch(s, number, 0)); ok(driver.cuStreamSynchronize(s))
    return result, state, ending
same(broken_by(lambda: driver.cuStreamSynchronize(s)), (UNSUPPORTED, INVALID, (INVALIDATED, None)))
same(broken_by(lambda: driver.cuStreamQuery(s)), (UNSUPPORTED, INVALID, (INVALIDATED, None)))
def too_large():
    return driver.cuLaunchKernel(kernel, 1, 1, 1, 2000, 1, 1, 0, s, None, None)
same(broken_by(too_large), (INVALID_VALUE, INVALID, (INVALIDATED, None)))
ok(driver.cuStreamBeginCapture_v2(s, RELAXED))
same(driver.cuStreamBeginCapture_v2(s, RELAXED), ILLEGAL_STATE)
same(status(s), ACTIVE)
ok(end(s)[0])
# An event of the capture has no completion to ask for.
e = event()
ok(driver.cuStreamBeginCapture_v2(s, RELAXED))
ok(driver.cuEventRecord(e, s))
ms = c_float()
same(driver.cuEventElapsedTime(byref(ms), e, e), CAPTURED)
same(status(s), ACTIVE)
same(driver.cuEventQuery(e), CAPTURED)
same(status(s), INVALID)
same(driver.cuEventQuery(e), INVALID_VALUE)
same(end(s), (INVALIDATED, None))
ok(driver.cuStreamBeginCapture_v2(s, RELAXED))
ok(driver.cuEventRecord(e, s)); ok(end(s)[0])
same(driver.cuEventSynchronize(e), INVALID_VALUE)
same(driver.cuStreamWaitEvent(stream(), e, 0), INVALID_VALUE)
ok(driver.cuStreamBeginCapture_v2(s, RELAXED))
same(driver.cuStreamWaitEvent(s, e, 0), INVALID_VALUE)
same(status(s), INVALID)
same(launch(s, number, 1), INVALIDATED); same(driver.cuEventRecord(event(), s), INVALIDATED)
same(driver.cuMemsetD8Async(number, 0, c_size_t(4), s), INVALIDATED)
same(driver.cuStreamQuery(s), UNSUPPORTED)
same(end(s), (INVALIDATED, None))
ok(driver.cuEventRecord(e, s)); ok(driver.cuEventSynchronize(e)); ok(driver.cuEventQuery(e))
# A wait for work outside the capture.
outside = event()
ok(driver.cuEventRecord(outside, _opener))
ok(driver.cuStreamBeginCapture_v2(s, RELAXED))
same(driver.cuStreamWaitEvent(s, outside, 0), ISOLATION)
same(end(s)[0], INVALIDATED)
""",
    )


def test_two_captures_do_not_mix(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
a, b = stream(), stream()
e = event(2)
ok(driver.cuStreamBeginCapture_v2(a, RELAXED)); ok(driver.cuStreamBeginCapture_v2(b, RELAXED))
ok(driver.cuEventRecord(e, a))
same(driver.cuStreamWaitEvent(b, e, 0), MERGE)
same((status(a), status(b)), (INVALID, INVALID))
same(end(a)[0], INVALIDATED); same(end(b)[0], INVALIDATED)
""",
    )


def test_modes(host: Host, transport: str) -> None:
    """Which calls are unsafe in which mode, in the capturing thread and in another."""
    host.run_python(
        transport,
        PRELUDE
        + """
s, other, e = stream(), stream(), event()
ok(driver.cuEventRecord(e, other)); ok(driver.cuStreamSynchronize(other))
def allocate():
    address = c_uint64()
    result = driver.cuMemAlloc_v2(byref(address), c_size_t(512))
    if result == 0: ok(driver.cuMemFree_v2(address))
    return result
def elsewhere(call, mode):
    answers = []
    def run():
        ok(driver.cuCtxSetCurrent(context))
        value = c_int(mode)
        ok(driver.cuThreadExchangeStreamCaptureMode(byref(value)))
        answers.append(call())
    t = threading.Thread(target=run); t.start(); t.join(20)
    return answers[0]
def during(capture_mode, call, thread_mode=None):
    ok(driver.cuStreamBeginCapture_v2(s, capture_mode))
    answer = call() if thread_mode is None else elsewhere(call, thread_mode)
    state = status(s)
    same(end(s)[0], 0 if state == ACTIVE else INVALIDATED)
    return answer, state
refused, allowed = (UNSUPPORTED, INVALID), (0, ACTIVE)
same(during(GLOBAL, allocate), refused)
same(during(THREAD_LOCAL, allocate), refused)
same(during(RELAXED, allocate), allowed)
same(during(GLOBAL, allocate, GLOBAL), refused)
same(during(GLOBAL, allocate, THREAD_LOCAL), allowed)
same(during(GLOBAL, allocate, RELAXED), allowed)
same(during(THREAD_LOCAL, allocate, GLOBAL), allowed)
same(during(RELAXED, allocate, GLOBAL), allowed)
same(during(GLOBAL, lambda: driver.cuEventQuery(e)), refused)
same(during(GLOBAL, lambda: driver.cuEventSynchronize(e)), refused)
same(during(RELAXED, lambda: driver.cuEventQuery(e)), allowed)
same(during(GLOBAL, lambda: driver.cuStreamQuery(other)), refused)
same(during(GLOBAL, lambda: driver.cuStreamSynchronize(other)), refused)
same(during(GLOBAL, lambda: driver.cuStreamCreate(byref(c_void_p()), 1)), allowed)
same(during(GLOBAL, lambda: driver.cuEventCreate(byref(c_void_p()), 0)), allowed)
mode = c_int(RELAXED)
ok(driver.cuThreadExchangeStreamCaptureMode(byref(mode))); same(mode.value, GLOBAL)
same(during(GLOBAL, allocate), allowed)
ok(driver.cuThreadExchangeStreamCaptureMode(byref(mode))); same(mode.value, RELAXED)
same(during(GLOBAL, allocate), refused)
# What is not unsafe.
ms, free, total, module, buffer = c_float(), c_size_t(), c_size_t(), c_void_p(), (c_uint * 4)()
number = alloc(16)
for call in (
    lambda: driver.cuEventElapsedTime(byref(ms), e, e),
    lambda: driver.cuMemGetInfo_v2(byref(free), byref(total)),
    lambda: driver.cuModuleLoadData(byref(module), PTX),
    lambda: driver.cuMemcpyHtoD_v2(number, buffer, c_size_t(16)),
    lambda: driver.cuMemcpyDtoH_v2(buffer, number, c_size_t(16)),
    lambda: driver.cuMemsetD8_v2(number, 0, c_size_t(16)),
    lambda: launch(other, number, 1),
    lambda: driver.cuEventRecord(e, other),
    lambda: driver.cuStreamWaitEvent(other, e, 0),
):
    same(during(GLOBAL, call), allowed)
graph, executable = c_void_p(), c_void_p()
ok(driver.cuGraphCreate(byref(graph), 0))
make = lambda: driver.cuGraphInstantiateWithFlags(byref(executable), graph, c_uint64(0))
same(during(GLOBAL, make), refused)
same(during(RELAXED, lambda: driver.cuCtxSynchronize()), refused)
""",
    )


def test_threads(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
s, number = stream(), alloc(4)
answers = []
def ending():
    ok(driver.cuCtxSetCurrent(context)); answers.append(end(s)[0])
def elsewhere():
    t = threading.Thread(target=ending); t.start(); t.join(20)
    return answers[-1]
ok(driver.cuStreamBeginCapture_v2(s, GLOBAL))
same(elsewhere(), WRONG_THREAD)
same(status(s), NONE)
same(end(s)[0], ILLEGAL_STATE)
ok(driver.cuStreamBeginCapture_v2(s, RELAXED))
same(elsewhere(), 0)
# Two threads capture at the same time, each its own stream.
failures = []
def capture(index):
    try:
        ok(driver.cuCtxSetCurrent(context))
        mine, there = stream(), c_uint64(numbers.value + 4 * index)
        for _ in range(10):
            ok(driver.cuStreamBeginCapture_v2(mine, THREAD_LOCAL))
            for _ in range(20): ok(launch(mine, there, 1))
            result, graph = end(mine); ok(result)
            executable = instantiate(c_void_p(graph))
            ok(driver.cuGraphLaunch(executable, mine))
            ok(driver.cuStreamSynchronize(mine))
            ok(driver.cuGraphExecDestroy(executable)); ok(driver.cuGraphDestroy(c_void_p(graph)))
    except BaseException as failure:
        failures.append(failure)
numbers = alloc(16)
threads = [threading.Thread(target=capture, args=(i,)) for i in range(4)]
for t in threads: t.start()
for t in threads: t.join(60)
assert not failures, failures
same(read(numbers, 4), [200] * 4)
""",
    )


def test_the_legacy_stream_during_a_capture(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
blocking, apart, number = stream(0), stream(1), alloc(4)
ok(driver.cuStreamBeginCapture_v2(blocking, RELAXED))
same(status(None), -IMPLICIT)
same(status(blocking), ACTIVE)
same(launch(None, number, 1), IMPLICIT)
same(status(blocking), INVALID)
same(end(blocking)[0], INVALIDATED)
ok(driver.cuStreamBeginCapture_v2(apart, RELAXED))
same(status(None), NONE)
ok(launch(None, number, 1))
ok(driver.cuStreamSynchronize(None))
ok(end(apart)[0])
same(read(number), 1)
""",
    )


def test_external_events(host: Host, transport: str) -> None:
    """Events that the graph records and waits for outside of itself."""
    host.run_python(
        transport,
        PRELUDE
        + """
s, number, signal = stream(), alloc(4), event()
ok(driver.cuStreamBeginCapture_v2(s, GLOBAL))
ok(launch(s, number, 1))
ok(driver.cuEventRecordWithFlags(signal, s, 1))
result, graph = end(s); ok(result)
executable = instantiate(c_void_p(graph))
ok(driver.cuEventQuery(signal))
hold(s)
ok(driver.cuGraphLaunch(executable, s))
same(driver.cuEventQuery(signal), NOT_READY)
let_go()
ok(driver.cuEventSynchronize(signal))
same(read(number), 1)
b = stream()
hold(s)
ok(driver.cuGraphLaunch(executable, s))
ok(driver.cuStreamWaitEvent(b, signal, 0))
ok(launch(b, number, 10))
time.sleep(0.02)
same(driver.cuStreamQuery(b), NOT_READY)
let_go()
ok(driver.cuStreamSynchronize(b))
same(read(number), 12)
""",
    )


def test_destroying_a_capturing_stream(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
s, number = stream(), alloc(4)
ok(driver.cuStreamBeginCapture_v2(s, GLOBAL))
ok(launch(s, number, 1))
ok(driver.cuStreamDestroy_v2(s))
address = c_uint64()
ok(driver.cuMemAlloc_v2(byref(address), c_size_t(512)), "nothing captures any more")
other = stream()
ok(launch(other, number, 5)); ok(driver.cuStreamSynchronize(other))
same(read(number), 5)
""",
    )


def test_capture_into_a_graph(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
s, number = stream(), alloc(4)
graph, first = c_void_p(), c_void_p()
ok(driver.cuGraphCreate(byref(graph), 0))
ok(driver.cuGraphAddEmptyNode(byref(first), graph, None, c_size_t(0)))
ok(driver.cuStreamBeginCaptureToGraph(s, graph, (c_void_p * 1)(first), None, c_size_t(1), GLOBAL))
ok(launch(s, number, 4))
result, made = end(s); ok(result)
same(made, graph.value)
count = c_size_t()
ok(driver.cuGraphGetNodes(graph, None, byref(count))); same(count.value, 2)
executable = instantiate(graph)
ok(driver.cuGraphLaunch(executable, s)); ok(driver.cuStreamSynchronize(s))
same(read(number), 4)
""",
    )
