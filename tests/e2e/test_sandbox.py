"""What a worker has given up once it serves: seen from outside, in a real session."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Host
from tests.e2e.observe import STEPPER, only_session, step, wait_for_line

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def served(host: Host, transport: str, look: Any) -> None:
    """Looks at a session while its client computes."""
    with host.start_client(transport, sys.executable, "-c", STEPPER) as client:
        wait_for_line(client, "running")
        assert step(client) == "1"
        look(only_session(host))
        assert step(client) == "2"
        client.communicate(timeout=30)


def test_the_kernel_holds_the_worker(own_host: Host, transport: str) -> None:
    def look(session: dict[str, Any]) -> None:
        status = status_of(session["worker_pid"])
        isolation = session["isolation"]
        if "seccomp" in isolation:
            assert status["Seccomp"] == "2"
        if isolation:
            assert status["NoNewPrivs"] == "1"
        limits = Path(f"/proc/{session['worker_pid']}/limits").read_text().splitlines()
        core = next(line.split() for line in limits if line.startswith("Max core file size"))
        assert core[4:6] == ["0", "0"]

    served(own_host, transport, look)


@ROOT_ONLY
def test_every_tenant_has_a_user_of_its_own(own_host: Host) -> None:
    seen = set()

    def look(session: dict[str, Any]) -> None:
        words = [word for word in session["isolation"] if word.startswith("user ")]
        if not words:
            pytest.skip("sandbox incomplete: workers run as root")
        status = status_of(session["worker_pid"])
        uid = words[0].removeprefix("user ")
        assert status["Uid"].split() == [uid] * 4
        assert status["Gid"].split() == [uid] * 4
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        seen.add(uid)

    for transport in ("shm", "shm", "tcp"):  # another endpoint, another tenant
        served(own_host, transport, look)
    assert len(seen) == 2


def test_a_worker_has_its_own_cgroup_and_leaves_none(own_host: Host, transport: str) -> None:
    groups: list[Path] = []

    def look(session: dict[str, Any]) -> None:
        if "cgroup" not in session["isolation"]:
            pytest.skip("sandbox incomplete: no cgroup to be had")
        lines = Path(f"/proc/{session['worker_pid']}/cgroup").read_text().splitlines()
        path = next(line[3:] for line in lines if line.startswith("0::"))
        assert path.endswith(f"-{session['id']}")
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        mount = next(line.split()[4] for line in mounts if " - cgroup2 " in line)
        groups.append(Path(mount) / path.lstrip("/"))
        assert groups[0].is_dir()

    served(own_host, transport, look)
    own_host.wait_until(lambda: not groups[0].exists(), "the group to go")


def test_without_a_sandbox(own_host: Host, transport: str) -> None:
    """What `sandbox.mode = "off"` says is what one gets, and the status says so."""
    own_host.stop()
    path = own_host.folder / "hostd.toml"
    path.write_text(path.read_text().replace("[sandbox]", '[sandbox]\nmode = "off"', 1))
    own_host.start()

    def look(session: dict[str, Any]) -> None:
        assert session["isolation"] == []
        status = status_of(session["worker_pid"])
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("0", "0")

    served(own_host, transport, look)


def test_worker_lines_are_json_where_hostd_is_asked_for_json(own_host: Host) -> None:
    own_host.stop()
    path = own_host.folder / "hostd.toml"
    path.write_text(path.read_text().replace("[limits]", '[log]\nformat = "json"\n[limits]', 1))
    (own_host.folder / "log").write_text("")
    own_host.start()
    own_host.run_python("shm", "from tests.e2e.client import *; Counter().add()")
    lines = [json.loads(line) for line in own_host.log.splitlines()]
    workers = [line for line in lines if line.get("part") == "worker"]
    assert "session started" in [line["msg"] for line in workers]
    assert all({"time", "level", "session", "pid"} <= set(line) for line in workers)
