"""A client as a process: forks, threads, signals, its end, and what it costs while idle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import TRANSPORTS, Host
from tests.e2e.observe import STEPPER, cpu_s, gone, step, wait_for_line, worker_of

PYTHON = sys.executable


def test_forked_child_cannot_use_cuda_and_the_parent_goes_on(host: Host, transport: str) -> None:
    text = """
import os, sys
from tests.e2e.client import *
driver = Driver()
counter = Counter(driver)
pinned = driver.pinned(4096)
ctypes.memset(pinned, 7, 4096)
stream, event = driver.stream(), c_void_p()
driver.call("cuEventCreate", ctypes.byref(event), 0)
assert counter.add() == 0
child = os.fork()
if child == 0:
    out = c_uint64()
    codes = {
        result(driver, "cuInit", 0),
        counter.add(),
        result(driver, "cuMemAlloc_v2", ctypes.byref(out), 4096),
        result(driver, "cuMemcpyDtoH_v2", ctypes.byref(out), counter.data, 8),
        result(driver, "cuCtxSynchronize"),
        result(driver, "cuEventRecord", event, stream),
        result(driver, "cuEventQuery", event),
        result(driver, "cuStreamDestroy_v2", stream),
        result(driver, "cuCtxGetCurrent", ctypes.byref(out)),
        result(driver, "cuDeviceGetCount", ctypes.byref(out)),
    }
    name = c_void_p()
    assert result(driver, "cuGetErrorName", 3, ctypes.byref(name)) == 0  # needs no session
    assert ctypes.string_at(pinned, 1) == b"\\7"  # pinned memory is inherited
    print("child", codes, flush=True)
    sys.exit(0)  # with its exit handlers
_, status = os.waitpid(child, 0)
print("child's exit code", os.waitstatus_to_exitcode(status))
assert counter.add() == 0
print("parent", counter.value())
"""
    output = host.run_python(transport, text)
    assert output == "child {3}\nchild's exit code 0\nparent 2\n"


def test_child_forked_before_cuda_has_a_session_of_its_own(host: Host, transport: str) -> None:
    text = """
import os, sys
from tests.e2e.client import *
library = ctypes.CDLL("libcuda.so.1")  # loaded, not initialised
child = os.fork()
counter = Counter()
assert counter.add() == 0
assert counter.value() == 1
if child == 0:
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert host.run_python(transport, text) == "0\n"


@pytest.mark.parametrize("how", ["fork", "raw"])
def test_child_that_outlives_its_parent_does_not_keep_the_worker(own_host: Host, how: str) -> None:
    """A plain fork closes the socket in the child; one behind libc's back does not, and only the
    parent's pidfd tells.
    """
    text = """
import os, sys, time
from tests.e2e.client import *
counter = Counter()
child = os.fork() if sys.argv[1] == "fork" else ctypes.CDLL(None).syscall(57)
if child == 0:
    os.close(0), os.close(1), os.close(2)
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""
    client = own_host.start_client("shm", PYTHON, "-c", text, how)
    assert client.stdout is not None
    child = int(client.stdout.readline())
    try:
        worker = worker_of(own_host)
        client.kill()
        client.communicate()
        assert not gone(child)
        own_host.wait_until(lambda: gone(worker), "the worker to end", timeout_s=5)
    finally:
        os.kill(child, signal.SIGKILL)


def test_program_that_execs_leaves_nothing(own_host: Host, transport: str) -> None:
    text = """
import os
from tests.e2e.client import *
counter = Counter()
assert counter.add() == 0
print("running", flush=True)
import sys
sys.stdin.readline()
os.execvp("sleep", ["sleep", "30"])
"""
    client = own_host.start_client(transport, PYTHON, "-c", text)
    wait_for_line(client, "running")
    worker = worker_of(own_host)
    assert client.stdin is not None
    client.stdin.write("go\n")
    client.stdin.flush()
    own_host.wait_until(lambda: gone(worker), "the worker to end", timeout_s=5)
    assert client.poll() is None
    client.kill()
    client.communicate()


def test_threads_launch_and_copy_on_one_context(host: Host, transport: str) -> None:
    text = """
import random, threading
from tests.e2e.client import *
driver = Driver()
module = load_module(driver, PTX)
function = get_function(driver, module, "add_one")
failures = []
def work(seed):
    try:
        driver.call("cuCtxSetCurrent", driver.context)
        rng = random.Random(seed)
        stream = driver.stream(0)  # a blocking one: ordered behind the copies
        count = 3000
        data = driver.alloc(4 * count)
        start = [rng.randrange(1 << 30) for _ in range(count)]
        driver.upload(data, struct.pack(f"{count}I", *start))
        added = 0
        for _ in range(30):
            for _ in range(rng.randrange(1, 20)):
                parameters = Parameters(c_uint64(data), c_uint(count))
                grid, block = (12, 1, 1), (256, 1, 1)
                assert launch(driver, function, grid, block, parameters, stream=stream) == 0
                added += 1
            driver.call("cuStreamSynchronize", stream)
            got = struct.unpack(f"{count}I", driver.download(data, 4 * count))
            assert got == tuple(each + added for each in start), (seed, added)
        driver.free(data)
    except BaseException as error:
        failures.append(repr(error))
        raise
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
for each in threads: each.start()
for each in threads: each.join()
assert not failures, failures
print("right")
"""
    assert host.run_python(transport, "import struct" + text) == "right\n"


def test_many_short_threads_reuse_their_places(host: Host, transport: str) -> None:
    """The window has room for 1024 waiting threads at a time: 3000 one after another must do."""
    text = """
import threading
from tests.e2e.client import *
driver = Driver()
counter = Counter(driver)
wrong = []
def work():
    codes = [result(driver, "cuCtxSetCurrent", driver.context), counter.add()]
    free, total = c_uint64(), c_uint64()
    codes.append(result(driver, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total)))
    if codes != [0, 0, 0]:
        wrong.append(codes)
for _ in range(375):
    threads = [threading.Thread(target=work) for _ in range(8)]
    for each in threads: each.start()
    for each in threads: each.join()
assert not wrong, wrong[:5]
print(counter.value())
"""
    assert host.run_python(transport, text) == "3000\n"


def test_more_threads_than_places_is_out_of_memory(host: Host) -> None:
    text = """
import threading
from tests.e2e.client import *
driver = Driver()
threading.stack_size(64 << 10)
together, over = threading.Barrier(1031), threading.Event()
codes = []
def work():
    free, total = c_uint64(), c_uint64()
    result(driver, "cuCtxSetCurrent", driver.context)
    codes.append(result(driver, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total)))
    together.wait()
    over.wait()
threads = [threading.Thread(target=work) for _ in range(1030)]
for each in threads: each.start()
together.wait()
over.set()
for each in threads: each.join()
print(codes.count(0), codes.count(2))
counter = Counter(driver)  # their places are free again
counter.add()
print(counter.value())
"""
    assert host.run_python("shm", text) == "1023 7\n1\n"


def test_signals_do_not_disturb_waits(host: Host, transport: str) -> None:
    """A timer fires a thousand times a second through launches, copies and long waits."""
    text = """
import signal, time
from tests.e2e.client import *
fired = [0]
def count(*_): fired[0] += 1
signal.signal(signal.SIGALRM, count)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
driver = Driver()
counter = Counter(driver)
data = driver.alloc(8 << 20)
block = os.urandom(8 << 20)
end = time.monotonic() + 2
rounds = 0
while time.monotonic() < end:
    for _ in range(50):
        assert counter.add() == 0
    driver.call("cuCtxSynchronize")
    driver.upload(data, block)
    assert driver.download(data, 8 << 20) == block
    rounds += 1
signal.setitimer(signal.ITIMER_REAL, 0, 0)
assert counter.value() == 50 * rounds
assert fired[0] > 10, fired  # Python counts those between its own steps
print("right")
"""
    assert host.run_python(transport, "import os" + text) == "right\n"


# Waits for a word on the vGPU that nobody writes, until a thread does after a while.
WAITER = """
import signal, sys, threading, time
from tests.e2e.client import *
driver = Driver()
stream, other = driver.stream(), driver.stream()
gate = driver.alloc(64)
driver.upload(gate, bytes(64))
driver.call("cuStreamWaitValue32_v2", stream, c_uint64(gate), c_uint(1), c_uint(0))
got = []
{handler}
def open_gate():
    time.sleep({delay})
    driver.call("cuCtxSetCurrent", driver.context)
    driver.call("cuStreamWriteValue32_v2", other, c_uint64(gate), c_uint(1), c_uint(0))
threading.Thread(target=open_gate, daemon=True).start()
print("running", flush=True)
code = result(driver, "cuStreamSynchronize", stream)
time.sleep(0)  # lets Python run its handler
print("ended", code, got)
"""


def test_interrupt_during_a_wait_runs_the_handler_and_the_wait_goes_on(
    host: Host, transport: str
) -> None:
    text = WAITER.replace("{handler}", "signal.signal(signal.SIGINT, lambda *_: got.append(1))")
    client = host.start_client(transport, PYTHON, "-c", text.replace("{delay}", "1.5"))
    wait_for_line(client, "running")
    time.sleep(0.5)
    client.send_signal(signal.SIGINT)
    output, errors = client.communicate(timeout=30)
    assert output == "ended 0 [1]\n", errors


def test_interrupt_during_a_wait_ends_a_program_without_handler(
    own_host: Host, transport: str
) -> None:
    text = WAITER.replace("{handler}", "signal.signal(signal.SIGINT, signal.SIG_DFL)")
    client = own_host.start_client(transport, PYTHON, "-c", text.replace("{delay}", "60"))
    wait_for_line(client, "running")
    worker = worker_of(own_host)
    time.sleep(0.5)
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=5)
    assert client.returncode == -signal.SIGINT
    own_host.wait_until(lambda: gone(worker), "the worker to end", timeout_s=5)


def test_stopped_client_goes_on(own_host: Host, transport: str) -> None:
    client = own_host.start_client(transport, PYTHON, "-c", STEPPER)
    wait_for_line(client, "running")
    assert step(client) == "1"
    client.send_signal(signal.SIGSTOP)
    time.sleep(2)
    client.send_signal(signal.SIGCONT)
    assert step(client) == "2"
    client.communicate(timeout=20)
    assert client.returncode == 0


def test_program_that_never_calls_cuda_makes_no_session(own_host: Host, transport: str) -> None:
    text = """
import ctypes, os
library = ctypes.CDLL("libcuda.so.1")
before = len(os.listdir("/proc/self/task"))
version, name = ctypes.c_int(), ctypes.c_char_p()
library.cuDriverGetVersion(ctypes.byref(version))
library.cuGetErrorString(1, ctypes.byref(name))
print(before, len(os.listdir("/proc/self/task")), version.value)
"""
    done = own_host.run(transport, PYTHON, "-c", text)
    assert done.stdout == "1 1 13000\n"
    assert done.stderr == ""
    assert "session started" not in own_host.log


@pytest.mark.parametrize(
    ("way", "status"),
    [
        ("sys.exit(3)", 3),
        ("os._exit(3)", 3),
        ("os.abort()", -signal.SIGABRT),
        ("import ctypes; ctypes.string_at(8)", -signal.SIGSEGV),
    ],
)
def test_exit_without_clean_up(own_host: Host, transport: str, way: str, status: int) -> None:
    """Streams, memory, work that still runs and a thread inside a wait: the process just ends, by
    its own will or in a crash.
    """
    text = WAITER.replace("{handler}", "import os").replace("{delay}", "60")
    head, _, _ = text.partition('print("running"')
    text = f"""{head}
threading.Thread(
    target=lambda: result(driver, "cuStreamSynchronize", stream), daemon=True
).start()
time.sleep(0.3)
print("running", flush=True)
sys.stdin.readline()
{way}
"""
    client = own_host.start_client(transport, PYTHON, "-c", text)
    wait_for_line(client, "running")
    worker = worker_of(own_host)
    _, errors = client.communicate("go\n", timeout=10)
    assert client.returncode == status
    assert errors == ""
    own_host.wait_until(lambda: gone(worker), "the worker to end", timeout_s=5)


def test_idle_session_uses_no_processor(own_host: Host, transport: str) -> None:
    """Also after host functions and several streams, whose threads and words are then at rest."""
    text = """
import sys
from tests.e2e.client import *
driver = Driver()
counter = Counter(driver)
callback = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)
for _ in range(3):
    stream = driver.stream()
    counter.add(stream)
    driver.call("cuLaunchHostFunc", stream, callback, None)
driver.synchronize()
print("running", flush=True)
sys.stdin.readline()
"""
    client = own_host.start_client(transport, PYTHON, "-c", text)
    wait_for_line(client, "running")
    worker = worker_of(own_host)
    time.sleep(1)
    before = cpu_s(client.pid), cpu_s(worker)
    time.sleep(3)
    spent = cpu_s(client.pid) - before[0], cpu_s(worker) - before[1]
    client.communicate("go\n", timeout=10)
    # Each may look around once a second; a clock tick is 10 ms.
    assert max(spent) <= 0.02, spent


def test_session_is_there_after_a_long_rest(host: Host) -> None:
    """A rest longer than the worker's patience with a ticket that nobody publishes (10 s)."""
    text = """
import time
from tests.e2e.client import Counter
counter = Counter()
counter.add()
time.sleep(11.5)
counter.add()
print(counter.value())
"""
    resting = [host.start_client(one, PYTHON, "-c", text) for one in TRANSPORTS]
    for client in resting:
        output, errors = client.communicate(timeout=60)
        assert output == "2\n", errors


def test_closed_standard_streams_do_no_harm(host: Host, transport: str) -> None:
    """The connection must not end up as descriptor 0, 1 or 2 that a program later reopens."""
    text = """
import os
os.close(0), os.close(2)
from tests.e2e.client import *
counter = Counter()
os.open("/dev/null", os.O_RDWR), os.open("/dev/null", os.O_RDWR)
counter.add()
print(counter.value())
"""
    done = subprocess.run(
        [PYTHON, "-c", text],
        stdout=subprocess.PIPE,
        env=host.client_environment(transport),
        check=False,
        timeout=60,
    )
    assert done.stdout == b"1\n"
