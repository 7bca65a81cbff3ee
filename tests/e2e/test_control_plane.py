"""A vGPU asked of the controller is used by a program on a node: real processes, every part."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.e2e.control_plane import Plane, eventually, linked, named
from tests.e2e.observe import ADD_ONCE, STEPPER, only_session, step, wait_for_line

pytestmark = pytest.mark.softgpu


def test_a_reserved_vgpu_reaches_the_node_and_serves_a_program(plane: Plane) -> None:
    host = plane.host(plane.folder / "n1")
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    vgpu = plane.vgpu("trainer", 25, 64)
    eventually(lambda: plane.state(vgpu) == "ready", "the vGPU")
    assert [one["origin"] for one in named(host)] == [vgpu["id"]]
    client = host.start_client("shm", sys.executable, "-c", STEPPER, GPUPOOL_VGPU="trainer")
    wait_for_line(client, "running")
    assert step(client) == "1"
    assert only_session(host)["compute_percent"] == 25
    eventually(lambda: plane.look(vgpu)["sessions"] == 1, "the session at the controller")
    plane.must("PATCH", f"/vgpus/{vgpu['id']}", {"compute_percent": 50})
    eventually(lambda: only_session(host)["compute_percent"] == 50, "the new share")
    assert step(client) == "2"
    client.communicate(timeout=30)
    assert client.returncode == 0
    plane.must("DELETE", f"/vgpus/{vgpu['id']}")
    eventually(lambda: plane.state(vgpu) == "gone", "it to go")
    assert named(host) == []
    assert linked(host)["connected"]


def test_two_clients_want_one_on_demand_place(plane: Plane) -> None:
    host = plane.host(plane.folder / "n1")
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    first = plane.vgpu("first", 60, 64, mode="on-demand")
    second = plane.vgpu("second", 60, 64, mode="on-demand")
    one = host.start_client("shm", sys.executable, "-c", STEPPER, GPUPOOL_VGPU="first")
    wait_for_line(one, "running")
    eventually(lambda: plane.state(first) == "ready", "the first")
    assert plane.state(second) == "idle"
    refused = host.run("shm", sys.executable, "-c", ADD_ONCE, GPUPOOL_VGPU="second")
    assert refused.returncode != 0
    assert "has room for 60 %" in refused.stderr
    two = host.start_client(
        "shm", sys.executable, "-c", STEPPER, GPUPOOL_VGPU="second", GPUPOOL_WAIT_S="60"
    )
    assert two.stderr is not None
    assert "waiting for vGPU second, for up to 60 s" in two.stderr.readline()
    assert step(one) == "1"
    one.communicate(timeout=30)
    wait_for_line(two, "running")
    eventually(lambda: plane.state(second) == "ready", "the second")
    assert plane.state(first) == "idle"
    assert step(two) == "1"
    two.kill()
    two.communicate(timeout=30)
    eventually(lambda: plane.state(second) == "idle", "its place to be free")
    eventually(lambda: named(host) == [], "the node to let go")


def test_a_deleted_vgpu_takes_its_client_along(plane: Plane) -> None:
    host = plane.host(plane.folder / "n1")
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    vgpu = plane.vgpu("trainer", 100, 64)
    eventually(lambda: plane.state(vgpu) == "ready", "the vGPU")
    client = host.start_client("shm", sys.executable, "-c", STEPPER, GPUPOOL_VGPU="trainer")
    wait_for_line(client, "running")
    plane.must("DELETE", f"/vgpus/{vgpu['id']}")
    eventually(lambda: plane.state(vgpu) == "gone", "it to go")
    assert host.sessions() == []
    client.communicate(timeout=30)
    following = plane.vgpu("next", 100, 64)
    eventually(lambda: plane.state(following) == "ready", "the next")


def test_the_nodes_own_vgpus_are_in_the_controllers_books(plane: Plane) -> None:
    host = plane.host(plane.folder / "n1")
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    client = host.start_client("shm", sys.executable, "-c", STEPPER, GPUPOOL_COMPUTE_PERCENT="70")
    wait_for_line(client, "running")

    def local() -> int:
        (gpu,) = plane.must("GET", "/gpus")["items"]
        return int(gpu["compute_free_percent"])

    eventually(lambda: local() == 30, "the controller to know")
    body = {"tenant": "acme", "name": "big", "compute_percent": 40, "memory_mib": 64}
    assert plane.ask("POST", "/vgpus", body).json()["type"] == "urn:gpupool:problem:no-room"
    client.communicate(timeout=30)
    eventually(lambda: local() == 100, "the room")
    plane.vgpu("big", 40)


def test_a_gpu_goes_to_the_other_pool_and_back(plane: Plane) -> None:
    host = plane.host(plane.folder / "n1")
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    (gpu,) = plane.must("GET", "/gpus")["items"]
    client = host.start_client("shm", sys.executable, "-c", STEPPER)
    wait_for_line(client, "running")

    def pool() -> str:
        return str(plane.must("GET", f"/gpus/{gpu['id']}")["pool"])

    plane.must("PATCH", f"/gpus/{gpu['id']}", {"pool": "native"})
    eventually(lambda: pool() == "draining", "it to drain")
    assert step(client) == "1"
    client.communicate(timeout=30)
    eventually(lambda: pool() == "native", "it to be native")
    plane.must("PATCH", f"/gpus/{gpu['id']}", {"pool": "pooled"})
    eventually(lambda: pool() == "pooled", "it to be back")
    vgpu = plane.vgpu("trainer", 25, 64)
    eventually(lambda: plane.state(vgpu) == "ready", "a vGPU on it")


def test_a_node_is_emptied_while_a_program_runs(plane: Plane) -> None:
    """Its session is ended at the deadline, whichever controller is there by then."""
    host = plane.host(plane.folder / "n1")
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    vgpu = plane.vgpu("trainer", 50, 64)
    eventually(lambda: plane.state(vgpu) == "ready", "the vGPU")
    client = host.start_client("shm", sys.executable, "-c", STEPPER, GPUPOOL_VGPU="trainer")
    wait_for_line(client, "running")
    (session,) = eventually_some(plane, "/sessions")
    (node,) = plane.must("GET", "/nodes")["items"]
    operation = plane.must("PUT", f"/nodes/{node['id']}/drain", {"deadline_s": 4})["id"]
    eventually(lambda: linked(host)["draining"], "the node to know")
    refused = host.run("shm", sys.executable, "-c", ADD_ONCE, GPUPOOL_VGPU="trainer")
    assert "being drained" in refused.stderr
    assert step(client) == "1", "it is waited for"
    plane.replicas[0].kill()
    plane.replicas[0].start()
    eventually(lambda: plane.must("GET", f"/operations/{operation}")["state"] == "done", "the end")
    assert host.sessions() == []
    client.communicate(timeout=30)
    assert plane.ask("DELETE", f"/sessions/{session['id']}").status_code == 404
    plane.must("DELETE", f"/nodes/{node['id']}/drain")
    eventually(lambda: not linked(host)["draining"], "the node to know")

    again = host.start_client("shm", sys.executable, "-c", STEPPER, GPUPOOL_VGPU="trainer")
    wait_for_line(again, "running")
    (session,) = eventually_some(plane, "/sessions")
    ended = plane.must("DELETE", f"/sessions/{session['id']}")["id"]
    eventually(lambda: plane.must("GET", f"/operations/{ended}")["state"] == "done", "the end")
    assert host.sessions() == []
    again.communicate(timeout=30)


# So many devices it has.
COUNT = """
import ctypes
from tests.guest.cuda import Driver
driver = Driver()
count = ctypes.c_int()
driver.call("cuDeviceGetCount", ctypes.byref(count))
print(count.value)
"""


def test_a_program_has_several_vgpus_of_the_controllers(plane: Plane) -> None:
    """One that is reserved and one on demand, each on its own GPU."""
    host = plane.host(plane.folder / "n1", devices=2)
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    kept = plane.vgpu("kept", 60, 64)
    lent = plane.vgpu("lent", 60, 64, mode="on-demand")
    eventually(lambda: plane.state(kept) == "ready", "the vGPU")
    done = host.run("shm", sys.executable, "-c", COUNT, GPUPOOL_VGPU="lent,kept")
    assert done.stdout.strip() == "2", done.stderr
    eventually(lambda: plane.state(lent) == "idle", "its place to be free")
    refused = host.run("shm", sys.executable, "-c", COUNT, GPUPOOL_VGPU="lent,none")
    assert refused.returncode != 0
    eventually(lambda: plane.state(lent) == "idle", "what was claimed for it to be free")


def test_a_programs_on_demand_vgpus_are_put_on_different_gpus(plane: Plane) -> None:
    """Both would fit on one, where a program cannot use two."""
    host = plane.host(plane.folder / "n1", devices=2)
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    lent = [plane.vgpu(name, 20, 64, mode="on-demand") for name in ("a", "b")]
    done = host.run("shm", sys.executable, "-c", COUNT, GPUPOOL_VGPU="a,b")
    assert done.stdout.strip() == "2", done.stderr
    eventually(lambda: {plane.state(one) for one in lent} == {"idle"}, "their places to be free")


def eventually_some(plane: Plane, path: str) -> Any:
    eventually(lambda: plane.must("GET", path)["items"], path)
    return plane.must("GET", path)["items"]
