"""The playbook that upgrades hosts: drained before, back in service after, or left cordoned."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.ansible.conftest import Wheels
from tests.ansible.machine import Machine
from tests.ansible.playbook import Site, site
from tests.e2e.control_plane import Plane, eventually
from tests.e2e.observe import STEPPER, wait_for_line
from tests.tree import ROOT

pytestmark = [pytest.mark.softgpu, pytest.mark.slow, pytest.mark.timeout(900)]
PLAYBOOK = ROOT / "ansible" / "playbooks" / "upgrade_hosts.yml"


def knowing(here: Site, plane: Plane) -> Site:
    """The same, with a controller. Its node n1 stands for the machine."""
    here.variables["gpupool_api"] = f"http://127.0.0.1:{plane.replicas[0].port}"
    here.variables["gpupool_api_token_file"] = str(plane.folder / "admin-token")
    here.variables["gpupool_host_node_name"] = "n1"
    return here


def cordoned(plane: Plane) -> bool:
    """What the controller says."""
    (node,) = plane.must("GET", "/nodes")["items"]
    return bool(node["cordoned"])


def test_a_host_in_use_is_left_alone_and_a_drained_one_upgraded(
    tmp_path: Path, target: Machine, wheelhouse: Wheels, plane: Plane
) -> None:
    here = knowing(site(tmp_path, target, wheelhouse), plane)
    client = plane.hosts[0].start_client("shm", sys.executable, "-c", STEPPER)
    wait_for_line(client, "running")
    eventually(lambda: plane.must("GET", "/sessions")["items"], "the session at the controller")
    busy = here.playbook(PLAYBOOK, gpupool_drain_timeout_s=1)
    assert busy.code != 0
    assert "still has sessions" in busy.text
    assert cordoned(plane)
    assert not target.ours()
    client.communicate(timeout=30)
    # It had been drained before the next run, and would stay so after it.
    plane.must("DELETE", f"/nodes/{plane.must('GET', '/nodes')['items'][0]['id']}/drain")

    # It follows the controller from now on, which makes its token.
    known = len(plane.must("GET", "/tokens")["items"])
    done = here.playbook(PLAYBOOK, gpupool_host_controller_url="tls://controller.example.org:9181")
    assert done.code == 0, done.text
    assert "/etc/gpupool/hostd.toml" in target.ours()
    assert not cordoned(plane)
    assert len(plane.must("GET", "/tokens")["items"]) == known + 1
    secret = target.run("cat", "/etc/gpupool/node-token").stdout.strip()
    assert len(secret) > 30
    assert secret not in done.text
    assert target.run("stat", "-c", "%a", "/etc/gpupool/node-token").stdout == "600\n"
