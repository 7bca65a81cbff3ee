"""Monitoring programs that nobody here wrote show the vGPU as they show a card."""

from __future__ import annotations

import json
import sys

import pytest

from tests.conftest import Host
from tests.guest.nvml import Holder


def show(host: Host, transport: str, *command: str) -> str:
    """What the program prints."""
    variables = {"TERM": "xterm", "COLUMNS": "120", "LINES": "50"}
    done = host.run(transport, sys.executable, "-m", *command, timeout_s=120, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_gpustat(host: Host, transport: str) -> None:
    pytest.importorskip("gpustat", reason="gpustat is missing")
    with Holder(host, transport, 64) as holder:
        gpu = json.loads(show(host, transport, "gpustat", "--json"))["gpus"][0]
    assert gpu["memory.used"] >= 64
    assert gpu["utilization.gpu"] in range(101)
    assert [gpu["temperature.gpu"], gpu["power.draw"], gpu["fan.speed"]] == [None, None, None]
    assert (holder.pid, 64) in [(one["pid"], one["gpu_memory_usage"]) for one in gpu["processes"]]


def test_nvitop(host: Host, transport: str) -> None:
    pytest.importorskip("nvitop", reason="nvitop is missing")
    with Holder(host, transport, 64) as holder:
        shown = show(host, transport, "nvitop", "-1")
    mine = next(line for line in shown.splitlines() if f" {holder.pid} " in line)
    assert "64.00MiB" in mine
