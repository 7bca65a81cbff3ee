"""Whatever of the control plane dies, at whatever moment: programs go on, nothing is given out
twice, nothing is left, and everything adds up again when it is back.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from tests.e2e.control_plane import Plane, eventually, linked, named
from tests.e2e.observe import ADD_ONCE, STEPPER, gone, step, wait_for_line, worker_of

pytestmark = pytest.mark.softgpu


def test_the_controller_is_killed_while_programs_run(plane: Plane) -> None:
    host = plane.host(plane.folder / "n1")
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    kept = plane.vgpu("kept", 30, 64)
    lent = plane.vgpu("lent", 30, 64, mode="on-demand")
    eventually(lambda: plane.state(kept) == "ready", "the vGPU")
    client = host.start_client("shm", sys.executable, "-c", STEPPER, GPUPOOL_VGPU="lent")
    wait_for_line(client, "running")
    plane.replicas[0].kill()
    assert step(client) == "1"
    eventually(lambda: not linked(host)["connected"], "hostd to notice")
    done = host.run("shm", sys.executable, "-c", ADD_ONCE, GPUPOOL_VGPU="kept")
    assert done.stdout.strip() == "1", done.stderr
    waiting = host.start_client(
        "shm", sys.executable, "-c", STEPPER, GPUPOOL_VGPU="lent", GPUPOOL_WAIT_S="90"
    )
    assert waiting.stderr is not None
    assert "the controller is not reached" in waiting.stderr.readline()
    refused = host.run("shm", sys.executable, "-c", ADD_ONCE, GPUPOOL_VGPU="lent")
    assert "the controller is not reached" in refused.stderr
    plane.replicas[0].start()
    wait_for_line(waiting, "running")
    assert (step(client), step(waiting)) == ("2", "1")
    eventually(lambda: plane.look(lent)["sessions"] == 2, "both in the books")
    assert host.log.count("registered") == 1, "the same incarnation goes on"
    for one in (client, waiting):
        one.communicate(timeout=30)
    eventually(lambda: plane.state(lent) == "idle", "its place to be free")


def test_hostd_is_killed_and_comes_back_without_a_controller(plane: Plane) -> None:
    host = plane.host(plane.folder / "n1")
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    kept = plane.vgpu("kept", 30, 64)
    lent = plane.vgpu("lent", 30, 64, mode="on-demand")
    eventually(lambda: plane.state(kept) == "ready", "the vGPU")
    client = host.start_client("shm", sys.executable, "-c", STEPPER, GPUPOOL_VGPU="lent")
    wait_for_line(client, "running")
    assert host.process is not None
    host.process.kill()
    host.process.wait(timeout=20)
    plane.replicas[0].kill()
    assert step(client) == "1"
    host.start()
    assert {one["origin"] for one in named(host)} == {kept["id"], lent["id"]}
    done = host.run("shm", sys.executable, "-c", ADD_ONCE, GPUPOOL_VGPU="kept")
    assert done.stdout.strip() == "1", done.stderr
    plane.replicas[0].start()
    eventually(lambda: linked(host)["connected"], "hostd to find it")
    eventually(lambda: plane.state(lent) == "ready", "its client to be known again")
    assert step(client) == "2"
    client.communicate(timeout=30)
    eventually(lambda: plane.state(lent) == "idle", "its place to be free")
    assert plane.state(kept) == "ready"


def test_hostd_is_killed_in_the_middle_of_claims(plane: Plane) -> None:
    host = plane.host(plane.folder / "n1")
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    lent = [plane.vgpu(f"lent{number}", 20, 64, mode="on-demand") for number in range(4)]
    for round_number in range(3):
        clients = [
            host.start_client(
                "shm", sys.executable, "-c", ADD_ONCE, GPUPOOL_VGPU=one["name"], GPUPOOL_WAIT_S="30"
            )
            for one in lent
        ]
        time.sleep(0.3 + 0.4 * round_number)
        assert host.process is not None
        host.process.kill()
        host.process.wait(timeout=20)
        host.start()
        for one in clients:  # those that had no worker yet are refused; none may hang
            one.communicate(timeout=60)
    eventually(lambda: {plane.state(one) for one in lent} == {"idle"}, "all places to be free", 60)
    eventually(lambda: named(host) == [], "the node to let go")


def test_hostd_is_there_first(plane: Plane) -> None:
    plane.replicas[0].kill()
    host = plane.host(plane.folder / "n1")
    done = host.run("shm", sys.executable, "-c", ADD_ONCE)
    assert done.stdout.strip() == "1", "a program of the node's own needs no controller"
    plane.replicas[0].start()
    eventually(lambda: plane.node_state("n1") == "ready", "the node")


@pytest.mark.parametrize("victim", ["worker", "client"])
def test_who_dies_gives_its_vgpu_back(plane: Plane, victim: str) -> None:
    host = plane.host(plane.folder / "n1")
    host.crash_expected = True
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    lent = plane.vgpu("lent", 30, 64, mode="on-demand")
    client = host.start_client("shm", sys.executable, "-c", STEPPER, GPUPOOL_VGPU="lent")
    wait_for_line(client, "running")
    eventually(lambda: plane.state(lent) == "ready", "the vGPU")
    worker = worker_of(host)
    os.kill(worker if victim == "worker" else client.pid, signal.SIGKILL)
    eventually(lambda: plane.state(lent) == "idle", "its place to be free")
    eventually(lambda: gone(worker), "the worker to be gone")
    client.communicate(timeout=30)


def test_a_node_that_hangs_is_lost_and_comes_back(plane: Plane) -> None:
    host = plane.host(plane.folder / "n1")
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    kept = plane.vgpu("kept", 30, 64)
    lent = plane.vgpu("lent", 30, 64, mode="on-demand")
    client = host.start_client("shm", sys.executable, "-c", STEPPER, GPUPOOL_VGPU="lent")
    wait_for_line(client, "running")
    eventually(lambda: plane.state(lent) == "ready", "the vGPU")
    assert host.process is not None
    host.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: plane.node_state("n1") == "lost", "it to be lost", 60)
        assert plane.state(kept) == "lost"
        assert plane.state(lent) == "idle"
        assert step(client) == "1", "the worker goes on by itself"
    finally:
        host.process.send_signal(signal.SIGCONT)
    eventually(lambda: plane.node_state("n1") == "ready", "it to be back")
    eventually(lambda: plane.state(kept) == "ready", "the reserved one")
    eventually(lambda: plane.state(lent) == "ready", "the one on demand, with its client")
    assert step(client) == "2"
    client.communicate(timeout=30)


def test_another_replica_takes_over(plane: Plane) -> None:
    plane.replica()
    host = plane.host(plane.folder / "n1")
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    vgpu = plane.vgpu("kept", 30, 64)
    eventually(lambda: plane.state(vgpu) == "ready", "the vGPU")
    plane.replicas[0].kill()
    more = plane.must("PATCH", f"/vgpus/{vgpu['id']}", {"compute_percent": 55}, at=1)
    assert more["compute_percent"] == 55
    eventually(lambda: named(host)[0]["compute_percent"] == 55, "the order of the other one")
