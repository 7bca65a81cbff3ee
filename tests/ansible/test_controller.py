"""Inventory and module against a real controller that leads a real hostd."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.ansible import collection
from tests.e2e.control_plane import Plane, eventually
from tests.e2e.observe import STEPPER, wait_for_line

pytestmark = [pytest.mark.softgpu, pytest.mark.timeout(600)]


def start(plane: Plane, *words: str) -> subprocess.Popen[str]:
    """One of ansible's programs."""
    environment = collection.environment()
    program = shutil.which(words[0], path=environment["PATH"])
    if program is None:
        pytest.skip("ansible is missing: pip install --group ansible")
    return subprocess.Popen(
        [program, *words[1:]],
        env=environment,
        cwd=plane.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it said."""
    try:
        text, _ = process.communicate(timeout=180)
    except BaseException:
        process.kill()
        process.wait(timeout=20)
        raise
    return process.returncode, text


def access(plane: Plane) -> dict[str, str]:
    """How the controller is asked."""
    return {
        "controller": f"http://127.0.0.1:{plane.replicas[0].port}",
        "token_file": str(plane.folder / "admin-token"),
    }


def node_module(plane: Plane, state: str, *words: str, **more: Any) -> subprocess.Popen[str]:
    """The module, on this machine."""
    given = json.dumps({**access(plane), "name": "n1", "state": state, **more})
    play = ("localhost", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}")
    return start(plane, "ansible", *play, "-m", "gpupool.gpupool.node", "-a", given, *words)


def cordoned(plane: Plane) -> bool:
    """What the controller says."""
    (node,) = plane.must("GET", "/nodes")["items"]
    return bool(node["cordoned"])


def test_the_inventory_has_the_nodes_of_the_controller(plane: Plane) -> None:
    source = {
        "plugin": "gpupool.gpupool.controller",
        **access(plane),
        "keyed_groups": [{"key": "gpupool_node.labels.zone", "prefix": "zone"}],
    }
    (plane.folder / "gpupool.yml").write_text(json.dumps(source))
    code, text = ended(start(plane, "ansible-inventory", "-i", "gpupool.yml", "--list"))
    assert code == 0, text
    found = json.loads(text[text.index("{") :])
    for group in ("gpupool_hosts", "gpupool_ready", "zone_a"):
        assert found[group]["hosts"] == ["n1"], text
    facts = found["_meta"]["hostvars"]["n1"]
    # Text that is no template is marked as such: {"__ansible_unsafe": "n1"}.
    assert "n1" in str(facts["gpupool_node"]["name"])
    assert "pooled" in str(facts["gpupool_gpus"][0]["pool"])


def test_what_a_node_says_is_no_template(plane: Plane) -> None:
    source = {"plugin": "gpupool.gpupool.controller", **access(plane)}
    (plane.folder / "gpupool.yml").write_text(json.dumps(source))
    show = ("-m", "ansible.builtin.debug", "-a", "var=gpupool_node.labels.evil")
    code, text = ended(start(plane, "ansible", "-i", "gpupool.yml", "n1", "-c", "local", *show))
    assert code == 0, text
    assert "{{ 6 * 7 }}" in text
    assert "42" not in text


def test_a_token_that_others_may_read_is_refused(plane: Plane) -> None:
    loose = plane.folder / "loose"
    loose.write_text("secret")
    loose.chmod(0o644)
    code, text = ended(node_module(plane, "cordoned", token_file=str(loose)))
    assert code != 0
    assert f"chmod 600 {loose}" in text


def test_a_node_is_cordoned_once_and_a_check_changes_nothing(plane: Plane) -> None:
    assert '"changed": true' in ended(node_module(plane, "cordoned", "--check"))[1]
    assert not cordoned(plane)
    assert '"changed": true' in ended(node_module(plane, "cordoned"))[1]
    assert cordoned(plane)
    code, text = ended(node_module(plane, "ready", timeout_s=60))
    assert code == 0, text
    assert '"changed": false' in text
    code, text = ended(node_module(plane, "uncordoned"))
    assert code == 0, text
    assert '"was_cordoned": true' in text
    assert not cordoned(plane)


def test_a_drain_waits_for_programs(plane: Plane) -> None:
    client = plane.hosts[0].start_client("shm", sys.executable, "-c", STEPPER)
    wait_for_line(client, "running")
    eventually(lambda: plane.must("GET", "/sessions")["items"], "the session at the controller")
    code, text = ended(node_module(plane, "drained", timeout_s=1))
    assert code != 0
    assert "still has sessions" in text
    assert "The drain goes on" in text
    waiting = node_module(plane, "drained", timeout_s=120)
    assert waiting.poll() is None
    client.communicate(timeout=30)
    code, text = ended(waiting)
    assert code == 0, text
    assert not plane.must("GET", "/sessions")["items"]
    assert cordoned(plane)
    assert '"changed": false' in ended(node_module(plane, "drained"))[1]
    assert '"changed": true' in ended(node_module(plane, "undrained"))[1]
    assert not cordoned(plane)
