"""What happens when something goes away, is full or is not there: an error in words, never a hang,
and nothing else breaks.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from tests.conftest import Host
from tests.e2e.observe import ADD_ONCE, STEPPER, gone, only_session, step, wait_for_line, worker_of

# Launches for ever and never waits: the ring is full most of the time.
LAUNCHER = """
from tests.e2e.client import *
counter = Counter()
print("running", flush=True)
while True:
    assert counter.add() == 0
"""

# Copies for ever, in pieces of 64 MiB; tells what ended it, and what every kind of call says then.
COPIER = """
import time
from tests.e2e.client import *
from tests.guest.cuda import CudaError
driver = Driver()
counter = Counter(driver)
size = 64 << 20
data = driver.alloc(size)
block = bytes(size)
event = c_void_p()
driver.call("cuEventCreate", ctypes.byref(event), 0)
stream = driver.stream()
print("running", flush=True)
try:
    while True:
        driver.{call}
except CudaError as error:
    start = time.monotonic()
    out = c_uint64()
    codes = [
        error.code,
        result(driver, "cuCtxSynchronize"),
        counter.add(),
        result(driver, "cuMemAlloc_v2", ctypes.byref(out), 4096),
        result(driver, "cuMemcpyHtoD_v2", data, block, 4096),
        result(driver, "cuEventRecord", event, stream),
        result(driver, "cuEventQuery", event),
        result(driver, "cuStreamQuery", stream),
        result(driver, "cuStreamSynchronize", stream),
        result(driver, "cuMemFree_v2", data),
        result(driver, "cuModuleLoadData", ctypes.byref(out), PTX),
        result(driver, "cuDeviceGetCount", ctypes.byref(out)),
    ]
    print("ended", set(codes), time.monotonic() - start < 1, flush=True)
"""


def test_client_killed_during_a_launch_leaves_nothing(own_host: Host, transport: str) -> None:
    client = own_host.start_client(transport, sys.executable, "-c", LAUNCHER)
    wait_for_line(client, "running")
    worker = worker_of(own_host)
    time.sleep(0.3)
    client.kill()
    killed_at = time.monotonic()
    client.communicate()
    own_host.wait_until(lambda: gone(worker), "the worker to end", timeout_s=5)
    assert time.monotonic() - killed_at < 3  # teardown begins within a second; this machine is slow
    own_host.wait_until(lambda: not own_host.sessions(), "the session to be reaped", timeout_s=10)


@pytest.mark.parametrize("call", ["upload(data, block)", "download(data, size)"])
def test_worker_killed_during_a_copy_is_an_error_and_no_hang(
    own_host: Host, transport: str, call: str
) -> None:
    client = own_host.start_client(transport, sys.executable, "-c", COPIER.replace("{call}", call))
    wait_for_line(client, "running")
    worker = worker_of(own_host)
    time.sleep(0.3)
    os.kill(worker, signal.SIGKILL)
    output, errors = client.communicate(timeout=30)
    # CUDA_ERROR_DEVICE_UNAVAILABLE, and again from every later call.
    assert output == "ended {46} True\n", errors
    assert errors.count("gpupool:") == 1, errors
    assert errors.count("\n") == 1, errors
    assert "the worker on the host is gone" in errors


def test_worker_killed_under_launches_ends_a_client_that_never_waits(
    own_host: Host, transport: str
) -> None:
    text = """
from tests.e2e.client import *
counter = Counter()
print("running", flush=True)
code = 0
while code == 0:
    code = counter.add()
print("ended", code)
"""
    client = own_host.start_client(transport, sys.executable, "-c", text)
    wait_for_line(client, "running")
    os.kill(worker_of(own_host), signal.SIGKILL)
    output, errors = client.communicate(timeout=30)
    assert output == "ended 46\n", errors
    assert errors.count("\n") == 1, errors


def test_worker_killed_under_polls_ends_them(own_host: Host, transport: str) -> None:
    """A loop of cuEventQuery never waits: it must still come to an end."""
    text = """
from tests.e2e.client import *
driver = Driver()
stream, event, gate = driver.stream(), c_void_p(), driver.alloc(64)
driver.upload(gate, bytes(64))
driver.call("cuEventCreate", ctypes.byref(event), 0)
driver.call("cuStreamWaitValue32_v2", stream, c_uint64(gate), c_uint(1), c_uint(0))
driver.call("cuEventRecord", event, stream)
code = result(driver, "cuEventQuery", event)
print("running", flush=True)
while code == 600:
    code = result(driver, "cuEventQuery", event)
print("ended", code, result(driver, "cuStreamQuery", stream))
"""
    client = own_host.start_client(transport, sys.executable, "-c", text)
    wait_for_line(client, "running")
    os.kill(worker_of(own_host), signal.SIGKILL)
    output, errors = client.communicate(timeout=30)
    assert output == "ended 46 46\n", errors


def test_full_window_is_out_of_memory_and_recovers(host: Host, transport: str) -> None:
    # 1024 MiB window, see conftest.
    text = """
from tests.e2e.client import *
driver = Driver()
def pinned(size):
    pointer = c_void_p()
    return result(driver, "cuMemHostAlloc", ctypes.byref(pointer), size, 0), pointer
kept = []
while True:
    code, pointer = pinned(64 << 20)
    if code:
        break
    kept.append(pointer)
assert code == 2, code
assert 8 <= len(kept) <= 16, len(kept)
assert pinned(1 << 40)[0] == 2
# Without pinned memory the session still works: launches and copies have their own room.
counter = Counter(driver)
assert counter.add() == 0
assert counter.value() == 1
block = driver.alloc(48 << 20)
driver.upload(block, bytes(48 << 20))
driver.call("cuMemFreeHost", kept.pop())
assert pinned(64 << 20)[0] == 0
print("ok")
"""
    assert host.run_python(transport, text) == "ok\n"


def test_full_ring_makes_launches_wait_and_loses_none(host: Host, transport: str) -> None:
    text = """
from tests.e2e.client import *
driver = Driver()
counter = Counter(driver)
for _ in range(20000):  # more than twice the ring
    assert counter.add() == 0
print(counter.value())
"""
    assert host.run_python(transport, text) == "20000\n"


def test_64_clients_at_once(own_host: Host, transport: str) -> None:
    start = time.monotonic()
    clients = [own_host.start_client(transport, sys.executable, "-c", ADD_ONCE) for _ in range(64)]
    results = [client.communicate(timeout=150) for client in clients]
    assert [errors for output, errors in results if output != "1\n"] == []
    own_host.wait_until(lambda: not own_host.sessions(), "every session to be reaped")
    assert time.monotonic() - start < 120


def test_sessions_go_on_while_hostd_restarts(own_host: Host, transport: str) -> None:
    client = own_host.start_client(transport, sys.executable, "-c", STEPPER)
    wait_for_line(client, "running")
    assert step(client) == "1"
    before = only_session(own_host)
    own_host.stop()
    assert step(client) == "2"
    own_host.start()
    assert step(client) == "3"
    after = only_session(own_host)
    assert after["worker_pid"] == before["worker_pid"]
    assert after["program"] == before["program"]
    client.communicate(timeout=20)
    assert client.returncode == 0
    own_host.wait_until(lambda: not own_host.sessions(), "the adopted session to be reaped")


def test_hostd_killed_under_a_session_finds_it_again(own_host: Host, transport: str) -> None:
    client = own_host.start_client(transport, sys.executable, "-c", STEPPER)
    wait_for_line(client, "running")
    worker = worker_of(own_host)
    assert own_host.process is not None
    own_host.process.kill()
    own_host.process.wait()
    assert step(client) == "1"
    own_host.start()
    assert worker_of(own_host) == worker
    assert step(client) == "2"
    client.communicate(timeout=20)


CU_INIT = 'import ctypes; print(ctypes.CDLL("libcuda.so.1").cuInit(0))'


@pytest.mark.parametrize("endpoint", ["unix:/nonexistent/hostd.sock", "tcp://127.0.0.1:1"])
def test_no_hostd_is_no_device_and_one_line(host: Host, endpoint: str) -> None:
    python = sys.executable
    done = host.run("shm", python, "-c", CU_INIT, GPUPOOL_ENDPOINT=endpoint, GPUPOOL_TRANSPORT="")
    assert done.stdout == "100\n"
    assert done.stderr.count("\n") == 1, done.stderr
    assert endpoint in done.stderr
    assert "hostd" in done.stderr  # what to do


def test_hostd_that_appears_later_is_found_by_the_next_init(own_host: Host, transport: str) -> None:
    text = """
import ctypes, sys
driver = ctypes.CDLL("libcuda.so.1")
print(driver.cuInit(0), flush=True)
sys.stdin.readline()
print(driver.cuInit(0), flush=True)
"""
    own_host.stop()
    client = own_host.start_client(transport, sys.executable, "-c", text)
    wait_for_line(client, "100")
    own_host.start()
    output, errors = client.communicate("go\n", timeout=30)
    assert output == "0\n", errors


@pytest.mark.parametrize(
    ("wanted", "endpoint", "words"),
    [
        ("tcp", "shm", "offers shm"),
        ("shm", "tcp", "offers tcp"),
        ("rdma", "shm", "not available"),
        ("vsock", "tcp", "offers tcp"),
    ],
)
def test_forced_transport_that_is_not_there_is_an_error(
    host: Host, wanted: str, endpoint: str, words: str
) -> None:
    done = host.run(endpoint, sys.executable, "-c", CU_INIT, GPUPOOL_TRANSPORT=wanted)
    assert done.stdout == "100\n"
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_worker_that_crashes_says_where(own_host: Host, transport: str) -> None:
    client = own_host.start_client(transport, sys.executable, "-c", LAUNCHER)
    wait_for_line(client, "running")
    own_host.crash_expected = True
    os.kill(worker_of(own_host), signal.SIGSEGV)
    client.communicate(timeout=30)
    own_host.wait_until(lambda: "killed by signal 11" in own_host.log, "hostd to see the end")
    line = next(line for line in own_host.log.splitlines() if "the worker crashed" in line)
    for part in ("signal 11", "while serving cu", "+0x"):
        assert part in line
