"""The role gpupool_host over ssh: what it would do, does, does not do again, and undoes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ansible.conftest import Wheels
from tests.ansible.machine import Machine
from tests.ansible.playbook import site
from tests.e2e.control_plane import eventually

SECRET = "7c6d1f20aa5e4d6b9c31"  # noqa: S105 (of no machine)
ROLE = "gpupool_host"


def start_hostd(machine: Machine) -> None:
    """As the unit would, and waits until it answers."""
    command = "setsid gpupool hostd --config /etc/gpupool/hostd.toml >/run/hostd.log 2>&1 &"
    machine.run("sh", "-c", command)
    eventually(lambda: machine.run("gpupool", "status", check=False).returncode == 0, "hostd")


def running(machine: Machine) -> str:
    """Processes of ours on it."""
    return machine.run("pgrep", "-f", "/opt/gpupool", check=False).stdout


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_a_host_comes_stays_and_goes(tmp_path: Path, target: Machine, wheelhouse: Wheels) -> None:
    (tmp_path / "token").write_text(SECRET + "\n")
    here = site(tmp_path, target, wheelhouse)
    here.variables["gpupool_host_config"] = {
        "gpu": "software",
        "limits": {"max_sessions": 7},
        "endpoint": [{"listen": "unix:/run/gpupool/hostd.sock"}],
    }
    here.variables["gpupool_host_libvirt"] = True
    here.variables["gpupool_host_network"] = {
        "bridge": [{"name": "gpupool0", "addresses": ["10.77.0.1/24"]}],
        "limit": [
            {
                "tenant": "acme",
                "interface": "gpupool0",
                "endpoints": ["tls://10.77.0.1:9177"],
                "to_mbit": 100,
            }
        ],
    }
    here.variables["gpupool_host_endpoint_token_file"] = str(tmp_path / "token")

    would = here.play(ROLE, check=True)
    assert would.changed > 0
    assert not target.ours()

    first = here.play(ROLE)
    assert first.handlers == ["Restart hostd", "Reload libvirt"]
    assert SECRET not in first.text
    assert "gpupool_host_service is false" in first.text  # no systemd here
    config = target.run("cat", "/etc/gpupool/hostd.toml").stdout
    assert "max_sessions = 7" in config
    assert target.run("stat", "-c", "%a %U", "/etc/gpupool/token").stdout == "600 root\n"
    assert SECRET in target.run("cat", "/etc/gpupool/token").stdout
    hook = target.run("stat", "-c", "%a", "/etc/libvirt/hooks/qemu.d/gpupool").stdout
    assert hook == "755\n"
    unit = target.run("cat", "/etc/systemd/system/gpupool-hostd.service").stdout
    assert "ExecStart=/opt/gpupool/bin/gpupool hostd --config /etc/gpupool/hostd.toml" in unit
    found = target.run("/usr/local/bin/gpupool", "doctor", "--json", check=False).stdout
    assert "/opt/gpupool/lib" in found

    assert "10.77.0.1/24" in target.run("ip", "-br", "addr", "show", "gpupool0").stdout
    unit = target.run("cat", "/etc/systemd/system/gpupool-network.service").stdout
    assert "Before=gpupool-hostd.service" in unit
    passed = target.run("gpupool", "network", "show", "--json").stdout
    assert '"tenant": "acme"' in passed

    start_hostd(target)

    second = here.play(ROLE)
    assert second.changed == 0, second.text
    assert second.handlers == []

    without = here.play(ROLE, gpupool_host_network={})
    assert without.changed > 0
    assert target.run("ip", "link", "show", "gpupool0", check=False).returncode != 0
    assert target.run("test", "-e", "/etc/gpupool/network.toml", check=False).returncode == 1

    gone = here.play(ROLE, gpupool_state="absent", gpupool_purge=True)
    assert gone.changed > 0
    assert not running(target)
    assert not target.ours()
    assert here.play(ROLE, gpupool_state="absent", gpupool_purge=True).changed == 0
