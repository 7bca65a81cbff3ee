"""Compute shares on the software GPU: who gets how much of it, and what happens when an arbiter, a
worker or a client goes away.

The software GPU computes on the processor, and two processes do so at once where there are cores,
so what is compared is what each client gets done in the same seconds.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Host
from tests.e2e.observe import wait_for_line
from tests.guest.stream_program import PRELUDE

# Launches and waits, again and again, some launches at a time; says how many at the end of each
# line of its standard input.
RUNNER = """
import sys, threading
from tests.e2e.client import *
counter = Counter()
done = 0
def tell():
    for line in sys.stdin:
        print(done, flush=True)
threading.Thread(target=tell, daemon=True).start()
print("running", flush=True)
while True:
    for _ in range(16):
        assert counter.add() == 0
    counter.driver.call("cuCtxSynchronize")
    done += 16
"""


# Two programs over two words of memory that they share: each waits on its stream for the other's.
WAITING = """
import ctypes, sys, time
from tests.e2e.client import *
TURNS = 30
driver = Driver()
def go(words, mine, others):
    stream = driver.stream()
    begin = time.monotonic()
    for turn in range(1, TURNS + 1):
        value = c_uint(turn)
        driver.call("cuStreamWriteValue32_v2", stream, c_uint64(words + mine), value, c_uint(0))
        driver.call("cuStreamWaitValue32_v2", stream, c_uint64(words + others), value, c_uint(0))
    driver.call("cuStreamSynchronize", stream)
    print(time.monotonic() - begin, flush=True)
"""
PING = (
    WAITING
    + """
words = driver.alloc(4096)
driver.upload(words, bytes(4096))
handle = (ctypes.c_char * 64)()
driver.call("cuIpcGetMemHandle", handle, c_uint64(words))
print(bytes(handle).hex(), flush=True)
go(words, 0, 64)
sys.stdin.read()
"""
)
PONG = (
    WAITING
    + """
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 64)]
words, handle = c_uint64(), Handle.from_buffer_copy(bytes.fromhex(sys.stdin.readline()))
driver.call("cuIpcOpenMemHandle_v2", ctypes.byref(words), handle, c_uint(1))
go(words.value, 64, 0)
"""
)
FREE, HELD = 0, 2  # LeaseState


def start(
    host: Host, transport: str, percent: int, policy: str = "elastic"
) -> subprocess.Popen[str]:
    """A client that keeps the GPU busy."""
    share = {"GPUPOOL_COMPUTE_PERCENT": str(percent), "GPUPOOL_POLICY": policy}
    variables = share if percent else {}
    client = host.start_client(transport, sys.executable, "-c", RUNNER, **variables)
    wait_for_line(client, "running")
    return client


def count(client: subprocess.Popen[str]) -> int:
    """How many kernels it has had done."""
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write("count\n")
    client.stdin.flush()
    return int(client.stdout.readline())


def done_in(clients: list[subprocess.Popen[str]], seconds: float) -> list[int]:
    """How many kernels each gets done in that time."""
    before = [count(client) for client in clients]
    time.sleep(seconds)
    return [count(client) - first for client, first in zip(clients, before, strict=True)]


def arbiter_of(host: Host) -> int:
    """The pid of the GPU's arbiter; 0 while there is none."""
    files = list(Path(host.folder, "state", "gpus").glob("*/arbiter.pid"))
    text = files[0].read_text() if files else ""
    return int(text) if text.strip() else 0


def lease_s(host: Host) -> dict[int, float]:
    """For how long each session's vGPU has been charged, by the number of the session: exact where
    what gets done depends on the processors, too. The last word that the arbiter writes into
    a lease page (hostd/pages/lease_page.hpp).
    """
    pages = Path(host.folder, "state", "gpus").glob("*/*.lease")
    return {
        int(path.stem): struct.unpack_from("<32xQ", path.read_bytes())[0] / 1e9 for path in pages
    }


def lease_states(host: Host) -> list[int]:
    """What each session is told (LeaseState of hostd/pages/lease_page.hpp)."""
    pages = Path(host.folder, "state", "gpus").glob("*/*.lease")
    return [int(struct.unpack_from("<I", path.read_bytes())[0]) for path in pages]


def leased_percent(host: Host, seconds: float) -> list[float]:
    """Of the GPU's time, by session, in that time from now on."""
    before, begin = lease_s(host), time.monotonic()
    time.sleep(seconds)
    after, took = lease_s(host), time.monotonic() - begin
    return [(after[session] - before[session]) / took * 100 for session in sorted(after)]


def leased_when(host: Host, *bounds: tuple[float, float]) -> None:
    """Each session's percents are between its bounds in one of some windows of 2 s: a client that
    gets no processor for a while wants nothing.
    """
    seen = []
    for _ in range(5):
        found = leased_percent(host, 2)
        seen.append(found)
        if all(low < each < high for each, (low, high) in zip(found, bounds, strict=True)):
            return
    pytest.fail(f"{bounds}: {seen}")


def check_three_to_one(host: Host, clients: list[subprocess.Popen[str]]) -> None:
    """Of the first to the second, coarsely. Both get something done."""
    before = [count(client) for client in clients]
    leased_when(host, (60, 90), (10, 38))
    after = [count(client) for client in clients]
    assert all(late > early for early, late in zip(before, after, strict=True)), (before, after)


def end(*clients: subprocess.Popen[str]) -> None:
    """Kills them."""
    for client in clients:
        client.kill()
        client.communicate()


def test_two_saturating_clients_get_their_shares(own_host: Host, transport: str) -> None:
    clients = [start(own_host, transport, 75), start(own_host, transport, 25)]
    own_host.wait_until(lambda: arbiter_of(own_host) > 0, "an arbiter")
    time.sleep(0.5)
    check_three_to_one(own_host, clients)
    end(*clients)


def test_a_hard_share_is_a_cap_also_alone(own_host: Host) -> None:
    free = start(own_host, "shm", 0)
    (solo,) = done_in([free], 2)
    end(free)
    capped = start(own_host, "shm", 25, "hard")
    own_host.wait_until(lambda: arbiter_of(own_host) > 0, "an arbiter")
    time.sleep(0.5)
    leased_when(own_host, (21, 29))
    (done,) = done_in([capped], 2)
    end(capped)
    assert 0 < done < solo


def test_hard_shares_side_by_side(own_host: Host) -> None:
    clients = [start(own_host, "shm", 60, "hard"), start(own_host, "shm", 20, "hard")]
    own_host.wait_until(lambda: arbiter_of(own_host) > 0, "an arbiter")
    time.sleep(0.5)
    leased_when(own_host, (50, 64), (16, 24))
    end(*clients)


def test_two_clients_of_one_vgpu_share_its_lease(own_host: Host) -> None:
    own_host.command("vgpu", "create", "both", "--compute", "30", "--policy", "hard")
    clients = []
    for _ in range(2):
        clients.append(
            own_host.start_client("shm", sys.executable, "-c", RUNNER, GPUPOOL_VGPU="both")
        )
        wait_for_line(clients[-1], "running")
    own_host.wait_until(lambda: arbiter_of(own_host) > 0, "an arbiter")
    time.sleep(0.5)
    leased_when(own_host, (25, 35), (25, 35))  # each page has the vGPU's sum
    own_host.command("vgpu", "resize", "both", "--compute", "60")
    leased_when(own_host, (50, 66), (50, 66))
    end(*clients)


def test_one_session_of_a_vgpu_has_its_lease_at_a_time(own_host: Host) -> None:
    """And all of them get something done."""
    own_host.command("vgpu", "create", "both", "--compute", "50", "--policy", "hard")
    clients = []
    for _ in range(3):
        clients.append(
            own_host.start_client("shm", sys.executable, "-c", RUNNER, GPUPOOL_VGPU="both")
        )
        wait_for_line(clients[-1], "running")
    own_host.wait_until(lambda: arbiter_of(own_host) > 0, "an arbiter")
    own_host.wait_until(lambda: HELD in lease_states(own_host), "a lease")
    before = [count(client) for client in clients]
    end_s = time.monotonic() + 3
    most = 0
    while time.monotonic() < end_s:
        # The pages are read one after the other, while the arbiter writes them.
        if lease_states(own_host).count(HELD) > 1 and lease_states(own_host).count(HELD) > 1:
            most += 1
        time.sleep(0.005)
    done = [count(client) - first for client, first in zip(clients, before, strict=True)]
    end(*clients)
    assert most < 5
    assert min(done) * 8 > max(done), done


def test_programs_of_a_vgpu_that_wait_for_each_other_on_the_gpu(own_host: Host) -> None:
    """Each one's stream waits for a value that the other's writes: neither is drained before the
    other has been let in.
    """
    own_host.command("vgpu", "create", "both", "--compute", "50")
    neighbour = start(own_host, "shm", 50)
    waiting, writing = (
        own_host.start_client("shm", sys.executable, "-c", text, GPUPOOL_VGPU="both")
        for text in (PING, PONG)
    )
    assert waiting.stdout is not None
    assert writing.stdin is not None
    writing.stdin.write(waiting.stdout.readline())
    writing.stdin.flush()
    took_s = []
    for client in (writing, waiting):
        output, errors = client.communicate(timeout=60)
        assert client.returncode == 0, errors
        took_s.append(float(output))
    end(neighbour)
    assert max(took_s) < 30, took_s


def test_shares_hold_again_after_the_arbiter_was_killed(own_host: Host) -> None:
    clients = [start(own_host, "shm", 75), start(own_host, "shm", 25)]
    own_host.wait_until(lambda: arbiter_of(own_host) > 0, "an arbiter")
    first = arbiter_of(own_host)
    os.kill(first, signal.SIGKILL)
    own_host.wait_until(lambda: arbiter_of(own_host) not in (0, first), "another arbiter")
    time.sleep(0.5)
    check_three_to_one(own_host, clients)
    end(*clients)


def test_clients_go_on_without_an_arbiter(own_host: Host) -> None:
    clients = [start(own_host, "shm", 75), start(own_host, "shm", 25)]
    own_host.wait_until(lambda: arbiter_of(own_host) > 0, "an arbiter")
    own_host.stop()  # nobody starts another one
    os.kill(arbiter_of(own_host), signal.SIGKILL)
    time.sleep(1.5)
    large, small = done_in(clients, 2)
    assert large > 0
    assert small > 0
    own_host.start()
    own_host.wait_until(lambda: own_host.log.count("arbiter started") == 2, "another arbiter")
    time.sleep(0.5)
    check_three_to_one(own_host, clients)
    end(*clients)
    assert own_host.log.count("arbiter is silent") == 2


@pytest.mark.parametrize("whose", ["worker", "client"])
def test_a_holder_that_is_killed_leaves_its_time_to_the_other(own_host: Host, whose: str) -> None:
    clients = [start(own_host, "shm", 75), start(own_host, "shm", 25)]
    own_host.wait_until(lambda: arbiter_of(own_host) > 0, "an arbiter")
    own_host.wait_until(lambda: HELD in lease_states(own_host), "a lease")
    if whose == "client":
        clients[0].kill()
    else:
        victim = max(own_host.sessions(), key=lambda each: int(each["compute_percent"]))
        own_host.crash_expected = True
        os.kill(int(victim["worker_pid"]), signal.SIGKILL)
    # The only vGPU that is left waits for nobody any more.
    own_host.wait_until(lambda: lease_states(own_host) == [FREE], "a GPU without leases")
    (after,) = done_in(clients[1:], 1)
    end(*clients)
    assert after > 0


def test_calls_that_submit_nothing_do_not_wait_for_the_lease(own_host: Host) -> None:
    """With one percent a turn comes every 200 ms; 40 allocations must not take 40 turns."""
    text = """
import time
from tests.e2e.client import *
counter = Counter()
driver = counter.driver
for _ in range(2000):
    assert counter.add() == 0
start = time.monotonic()
for size in range(40):
    driver.alloc((1 << 20) + size * 512)
print(time.monotonic() - start)
"""
    neighbour = start(own_host, "shm", 99)
    output = own_host.run_python("shm", text, GPUPOOL_COMPUTE_PERCENT="1")
    end(neighbour)
    assert float(output) < 3, output


def test_an_endless_kernel_does_not_starve_the_neighbour(own_host: Host) -> None:
    """A stream that waits for a word which nobody writes is as endless as a kernel."""
    text = """
import time
from tests.e2e.client import *
driver = Driver()
gate = driver.alloc(64)
driver.upload(gate, bytes(64))
driver.call("cuStreamWaitValue32_v2", driver.stream(), c_uint64(gate), c_uint(1), c_uint(0))
print("running", flush=True)
time.sleep(60)
"""
    neighbour = start(own_host, "shm", 50)
    endless = own_host.start_client("shm", sys.executable, "-c", text, GPUPOOL_COMPUTE_PERCENT="50")
    wait_for_line(endless, "running")
    leased_when(own_host, (40, 101), (-1, 60))
    (done,) = done_in([neighbour], 1)
    end(neighbour, endless)
    assert done > 0


def test_work_that_waits_for_later_work_uses_its_lease(own_host: Host, transport: str) -> None:
    """A stream that waits for a value which the program writes after the launches behind it. What
    cannot be done yet is not work in flight that the next launch has to fit behind.
    """
    own_host.run_python(
        transport,
        PRELUDE
        + """
s, number = stream(), alloc(4)
begin = time.monotonic()
hold(s)
for _ in range(60): ok(launch(s, number, 1))
let_go()
ok(driver.cuStreamSynchronize(s))
same(read(number), 60)
took_s = time.monotonic() - begin
assert took_s < 20, f"{took_s} s"
""",
        GPUPOOL_COMPUTE_PERCENT="20",
        GPUPOOL_POLICY="hard",
    )
