"""A vGPU asked of the controller is used by a program on a node: real processes, every part."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import end_host
from tests.e2e.control_plane import Plane, eventually, linked, named
from tests.e2e.observe import STEPPER, only_session, step, wait_for_line

pytestmark = pytest.mark.softgpu


@pytest.fixture
def plane() -> Iterator[Plane]:
    """One controller on SQLite, with the tenant acme and a token for the node n1."""
    folder = Path(tempfile.mkdtemp(prefix="gpupool-plane-"))
    folder.chmod(0o711)
    one = Plane(folder, f"sqlite:///{folder}/controller.db")
    try:
        one.replica()
        one.tenant()
        one.token("n1")
        yield one
        one.check()
    finally:
        for host in one.hosts:
            end_host(host)
        one.end()
        shutil.rmtree(folder, ignore_errors=True)


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
