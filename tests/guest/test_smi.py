"""`gpupool smi` in a guest that has nothing but the guest runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Host
from tests.guest.nvml import Holder

pytest.importorskip("pynvml", reason="nvidia-ml-py is missing")


@pytest.fixture
def guest(tmp_path: Path, host: Host) -> Path:
    """A folder of native files with the guest's libraries alone."""
    folder = tmp_path / "native"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "guest").symlink_to(host.native / "lib" / "guest")
    return folder


def smi(
    guest: Path, host: Host, transport: str, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command as a guest would."""
    command = (sys.executable, "-m", "gpupool.cli", "smi", *options)
    alone = {"GPUPOOL_NATIVE_DIR": str(guest), "LD_LIBRARY_PATH": "", **variables}
    return host.run(transport, *command, timeout_s=120, **alone)


def test_the_table(guest: Path, host: Host, transport: str) -> None:
    with Holder(host, transport, 48) as holder:
        done = smi(guest, host, transport)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("driver 5")
    assert lines[2].startswith("GPU  NAME")
    mine = next(line for line in lines if f" {holder.pid} " in line)
    assert "48 MiB" in mine
    assert "python" in mine


def test_json(guest: Path, host: Host, transport: str) -> None:
    with Holder(host, transport, 16) as holder:
        done = smi(guest, host, transport, "--json", GPUPOOL_MEMORY_MIB="1024")
    found: dict[str, Any] = json.loads(done.stdout)
    gpu = found["gpus"][0]
    assert gpu["memory_total_bytes"] == 1 << 30
    assert gpu["memory_used_bytes"] >= 16 << 20
    assert 0 <= gpu["utilization_percent"] <= 100
    assert holder.pid in [one["pid"] for one in found["processes"]]
    assert "power" not in done.stdout


def test_without_a_host(guest: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpupool.cli", "smi", "--endpoint", "unix:/nonexistent"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=dict(os.environ, GPUPOOL_NATIVE_DIR=str(guest)),
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "cannot reach unix:/nonexistent" in done.stderr
    assert "gpupool smi: Driver Not Loaded" in done.stderr


def test_without_the_library(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpupool.cli", "smi"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=dict(os.environ, GPUPOOL_NATIVE_DIR=str(tmp_path)),
    )
    assert done.returncode == 1
    assert "libnvidia-ml.so.1 was not found" in done.stderr
