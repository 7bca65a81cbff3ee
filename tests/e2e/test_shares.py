"""Compute shares on the software GPU: who gets how much of it, and what happens when an arbiter, a
worker or a client goes away.

The software GPU computes on the processor, and two processes do so at once where there are cores,
so what is compared is what each client gets done in the same seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Host
from tests.e2e.observe import wait_for_line

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
    for _ in range(4):
        assert counter.add() == 0
    counter.driver.call("cuCtxSynchronize")
    done += 4
"""


def start(host: Host, transport: str, percent: int) -> subprocess.Popen[str]:
    """A client that keeps the GPU busy."""
    client = host.start_client(
        transport, sys.executable, "-c", RUNNER, GPUPOOL_COMPUTE_PERCENT=str(percent)
    )
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


def end(*clients: subprocess.Popen[str]) -> None:
    """Kills them."""
    for client in clients:
        client.kill()
        client.communicate()


def test_two_saturating_clients_get_their_shares(own_host: Host, transport: str) -> None:
    clients = [start(own_host, transport, 75), start(own_host, transport, 25)]
    own_host.wait_until(lambda: arbiter_of(own_host) > 0, "an arbiter")
    time.sleep(0.5)
    large, small = done_in(clients, 4)
    end(*clients)
    assert small > 0
    assert 2 < large / small < 4.5, (large, small)


def test_shares_hold_again_after_the_arbiter_was_killed(own_host: Host) -> None:
    clients = [start(own_host, "shm", 75), start(own_host, "shm", 25)]
    own_host.wait_until(lambda: arbiter_of(own_host) > 0, "an arbiter")
    first = arbiter_of(own_host)
    os.kill(first, signal.SIGKILL)
    own_host.wait_until(lambda: arbiter_of(own_host) not in (0, first), "another arbiter")
    time.sleep(0.5)
    large, small = done_in(clients, 4)
    end(*clients)
    assert 2 < large / small < 4.5, (large, small)


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
    own_host.wait_until(lambda: "arbiter started" in own_host.log.rpartition("ready")[2], "another")
    time.sleep(0.5)
    large, small = done_in(clients, 4)
    end(*clients)
    assert 2 < large / small < 4.5, (large, small)
    assert own_host.log.count("arbiter is silent") == 2


@pytest.mark.parametrize("whose", ["worker", "client"])
def test_a_holder_that_is_killed_leaves_its_time_to_the_other(own_host: Host, whose: str) -> None:
    clients = [start(own_host, "shm", 75), start(own_host, "shm", 25)]
    own_host.wait_until(lambda: arbiter_of(own_host) > 0, "an arbiter")
    time.sleep(0.3)
    (before,) = done_in(clients[1:], 2)
    if whose == "client":
        clients[0].kill()
    else:
        victim = max(own_host.sessions(), key=lambda each: int(each["compute_percent"]))
        own_host.crash_expected = True
        os.kill(int(victim["worker_pid"]), signal.SIGKILL)
    time.sleep(0.5)
    (after,) = done_in(clients[1:], 2)
    end(*clients)
    assert after > 2 * before
