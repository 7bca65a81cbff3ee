"""The role gpupool_kata over ssh: what it would do, does, does not do again, and undoes.

Kata itself is not there: its configuration is a folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ansible.conftest import Wheels
from tests.ansible.machine import Machine
from tests.ansible.playbook import Site, site
from tests.ansible.test_host_role import start_hostd

ROLE = "gpupool_kata"
CONFIG = "/opt/kata/share/defaults/kata-containers"
DROP_IN = f"{CONFIG}/config.d/60-gpupool.toml"
CDI = "/etc/cdi/gpupool.dev-kata_trainer.json"
ADMIN = ("--admin-socket", "/run/gpupool/admin.sock")  # others may run beside, for other tests
TRAINER = {"name": "trainer", "compute": 25, "memory": "1G", "namespace": "res*", "pod": "it's-*"}


def devices(machine: Machine) -> list[dict[str, Any]]:
    """As hostd has them."""
    listed = json.loads(machine.run("gpupool", "kata", "list", "--json", *ADMIN).stdout)
    return list(listed["devices"])


def test_what_is_missing_is_named(tmp_path: Path, target: Machine) -> None:
    here = Site(tmp_path, target)
    outcome = here.attempt(ROLE)
    assert outcome.code != 0
    assert "the role gpupool_host comes first" in outcome.text
    more = {"gpupool_kata_config_folders": ["/nowhere/config.d"]}
    outcome = here.attempt(ROLE, check=True, **more)
    assert "and this machine has no /nowhere" in outcome.text
    outcome = here.attempt(ROLE, check=True, gpupool_kata_libraries="guest")
    assert "need gpupool_kata_config_folders" in outcome.text
    outcome = here.attempt(ROLE, gpupool_kata_devices=[{"compute": 5}])
    assert "missing required arguments: name" in outcome.text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_devices_come_change_and_go(tmp_path: Path, target: Machine, wheelhouse: Wheels) -> None:
    here = site(tmp_path, target, wheelhouse)
    here.variables["gpupool_host_config"] = {
        "gpu": "software",
        "endpoint": [{"listen": "unix:/run/gpupool/hostd.sock"}],
    }
    here.variables["gpupool_kata_devices"] = [TRAINER]
    would = here.play(ROLE, check=True)  # before there is a gpupool
    assert would.handlers == ["Load the kernel's vsock"]
    assert not target.ours()
    here.play("gpupool_host")
    start_hostd(target)
    before = target.ours()

    would = here.play(ROLE, check=True)
    assert would.changed > 0
    assert devices(target) == []
    assert target.ours() == before

    first = here.play(ROLE)
    assert first.handlers == ["Load the kernel's vsock"]
    (one,) = devices(target)
    assert (one["name"], one["compute_percent"], one["memory_mib"]) == ("trainer", 25, 1024)
    assert (one["namespace"], one["pod"]) == ("res*", "it's-*")
    file = json.loads(target.run("cat", CDI).stdout)
    libraries = {mount["hostPath"] for mount in file["devices"][0]["containerEdits"]["mounts"]}
    assert any(path.startswith("/opt/gpupool/lib") for path in libraries)
    hook = file["devices"][0]["containerEdits"]["hooks"][0]
    assert target.run(hook["path"], *hook["args"][1:3], check=False).stderr.startswith("usage:")
    modules = target.run("cat", "/etc/modules-load.d/gpupool-kata.conf").stdout
    assert modules == "vhost_vsock\n"
    again = here.play(ROLE)
    assert again.changed == 0, again.text

    target.run("mkdir", "-p", CONFIG)
    more: dict[str, Any] = {
        "gpupool_kata_devices": [{**TRAINER, "compute": 50, "policy": "hard"}],
        "gpupool_kata_libraries": "guest",
        "gpupool_kata_config_folders": [f"{CONFIG}/config.d"],
    }
    assert here.play(ROLE, check=True, **more).changed > 0
    assert here.play(ROLE, **more).changed > 0
    assert here.play(ROLE, **more).changed == 0
    assert [each["compute_percent"] for each in devices(target)] == [50]
    assert "visible_cdi_devices = true" in target.run("cat", DROP_IN).stdout
    assert "VISIBLE_CDI_DEVICES=gpupool.dev/vgpu=all" in target.run("cat", CDI).stdout
    more["gpupool_kata_libraries"] = "host"
    assert here.play(ROLE, **more).changed > 0
    assert target.run("test", "-e", DROP_IN, check=False).returncode == 1

    away = {**more, "gpupool_state": "absent"}
    assert here.play(ROLE, check=True, **away).changed > 0
    assert len(devices(target)) == 1
    assert here.play(ROLE, **away).changed > 0
    assert devices(target) == []
    assert not {path for path in target.ours() if "kata" in path and "/lib/python" not in path}
    assert here.play(ROLE, **away).changed == 0
    here.play("gpupool_host", gpupool_state="absent", gpupool_purge=True)
    assert not target.ours()
