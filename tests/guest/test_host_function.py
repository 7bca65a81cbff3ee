"""Functions of the program that run when the GPU reaches them."""

from __future__ import annotations

import os
import signal
import sys

from tests.conftest import Host
from tests.guest.stream_program import PRELUDE

CALLS = """
FUNCTION = ctypes.CFUNCTYPE(None, c_void_p)
CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p)
seen = []
note = FUNCTION(lambda data: seen.append(data))
"""


def test_in_the_order_of_the_stream(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + CALLS
        + """
s, number = stream(), alloc(4)
hold(s)
for i in range(1, 21):
    ok(launch(s, number, 1))
    ok(driver.cuLaunchHostFunc(s, note, c_void_p(i)))
ok(launch(s, number, 1))
time.sleep(0.05)
same(seen, []); same(driver.cuStreamQuery(s), NOT_READY)
let_go()
ok(driver.cuStreamSynchronize(s))
same(seen, list(range(1, 21)))
same(read(number), 21)
same(driver.cuLaunchHostFunc(s, None, None), INVALID_VALUE)
""",
    )


def test_the_stream_waits_for_the_function(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + CALLS
        + """
s, number = stream(), alloc(4)
entered, leave = threading.Event(), threading.Event()
def slow(data):
    entered.set(); leave.wait(20); seen.append("ran")
slow = FUNCTION(slow)
e = event(2)
ok(driver.cuLaunchHostFunc(s, slow, None))
ok(driver.cuEventRecord(e, s))
ok(launch(s, number, 1))
assert entered.wait(20)
same(driver.cuStreamQuery(s), NOT_READY); same(driver.cuEventQuery(e), NOT_READY)
other = stream()
ok(launch(other, number, 10)); ok(driver.cuStreamSynchronize(other))  # other streams go on
# and so do calls that wait for the worker
free, total = c_size_t(), c_size_t()
ok(driver.cuMemGetInfo_v2(byref(free), byref(total)))
leave.set()
ok(driver.cuCtxSynchronize())
same(seen, ["ran"]); same(read(number), 11)
""",
    )


def test_callbacks(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + CALLS
        + """
s = stream()
calls = []
callback = CALLBACK(lambda handle, result, data: calls.append((handle, result, data)))
ok(driver.cuStreamAddCallback(s, callback, c_void_p(5), 0))
ok(driver.cuStreamAddCallback(s, callback, None, 0))
ok(driver.cuStreamSynchronize(s))
same(calls, [(s.value, 0, 5), (s.value, 0, None)])
same(driver.cuStreamAddCallback(s, callback, None, 1), INVALID_VALUE)
same(driver.cuStreamAddCallback(s, None, None, 0), INVALID_VALUE)
""",
    )


def test_in_graphs(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + CALLS
        + """
s, number = stream(), alloc(4)
ok(driver.cuStreamBeginCapture_v2(s, GLOBAL))
ok(launch(s, number, 1))
ok(driver.cuLaunchHostFunc(s, note, c_void_p(7)))
ok(launch(s, number, 1))
result, graph = end(s); ok(result)
same(seen, [])
graph = c_void_p(graph)
executable = instantiate(graph)
for _ in range(3): ok(driver.cuGraphLaunch(executable, s))
ok(driver.cuStreamSynchronize(s))
same(seen, [7, 7, 7]); same(read(number), 6)
class HostParams(ctypes.Structure):
    _fields_ = [("function", FUNCTION), ("data", c_void_p)]
built, node = c_void_p(), c_void_p()
ok(driver.cuGraphCreate(byref(built), 0))
ok(driver.cuGraphAddHostNode(byref(node), built, None, c_size_t(0), byref(HostParams(note, 9))))
params = HostParams()
ok(driver.cuGraphHostNodeGetParams(node, byref(params)))
same(params.data, 9)
second = instantiate(built)
ok(driver.cuGraphDestroy(built))
ok(driver.cuGraphLaunch(second, s)); ok(driver.cuStreamSynchronize(s))
same(seen, [7, 7, 7, 9])
# The function changes in the executable graph alone.
third = c_void_p()
ok(driver.cuGraphCreate(byref(built), 0))
ok(driver.cuGraphAddHostNode(byref(node), built, None, c_size_t(0), byref(HostParams(note, 9))))
third = instantiate(built)
ok(driver.cuGraphExecHostNodeSetParams(third, node, byref(HostParams(note, 10))))
ok(driver.cuGraphLaunch(third, s)); ok(driver.cuStreamSynchronize(s))
same(seen, [7, 7, 7, 9, 10])
ok(driver.cuGraphLaunch(instantiate(built), s)); ok(driver.cuStreamSynchronize(s))
same(seen, [7, 7, 7, 9, 10, 9])
ok(driver.cuGraphExecDestroy(executable)); ok(driver.cuGraphExecDestroy(second))
""",
    )


def test_an_idle_program_uses_no_cpu(host: Host, transport: str) -> None:
    """The thread that runs host functions sleeps when none is outstanding."""
    host.run_python(
        transport,
        PRELUDE
        + CALLS
        + """
s = stream()
ok(driver.cuLaunchHostFunc(s, note, None)); ok(driver.cuStreamSynchronize(s))
time.sleep(0.5)
before = time.process_time()
time.sleep(1.0)
used = time.process_time() - before
assert used < 0.05, f"{used} s of CPU in one idle second"
""",
    )


def test_callbacks_hear_of_a_lost_worker(own_host: Host, transport: str) -> None:
    """cuda.h: a stream callback is told of an error; a host function is not called after one."""
    client = own_host.start_client(
        transport,
        sys.executable,
        "-c",
        PRELUDE
        + CALLS
        + """
s, calls = stream(), []
callback = CALLBACK(lambda handle, result, data: calls.append(result))
hold(s)
ok(driver.cuLaunchHostFunc(s, note, None))
ok(driver.cuStreamAddCallback(s, callback, None, 0))
print("waiting", flush=True)
until(lambda: calls, "the callback")
assert calls[0] != 0 and len(calls) == 1, calls
same(seen, [])
same(driver.cuStreamSynchronize(s), calls[0])
print("told", flush=True)
""",
    )
    assert client.stdout is not None
    assert client.stdout.readline().strip() == "waiting"
    worker = next(s["worker_pid"] for s in own_host.sessions() if s["pid"] == client.pid)
    os.kill(worker, signal.SIGKILL)
    output, errors = client.communicate(timeout=30)
    assert (client.returncode, output.strip()) == (0, "told"), errors


def test_many(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + CALLS
        + """
streams = [stream() for _ in range(4)]
order = {s.value: [] for s in streams}
functions = []
for s in streams:
    functions.append(FUNCTION(lambda data, key=s.value: order[key].append(data or 0)))
for i in range(250):
    for s, f in zip(streams, functions): ok(driver.cuLaunchHostFunc(s, f, c_void_p(i)))
ok(driver.cuCtxSynchronize())
for s in streams: same(order[s.value], list(range(250)))
""",
    )
