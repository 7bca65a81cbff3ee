"""Where and with what a run was made."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpupool

_TIMEOUT_S = 20


def _first_line(path: str, start: str) -> str:
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    found = next((line for line in lines if line.startswith(start)), "")
    return found.partition(":")[2].strip() or found.strip()


def _said(*command: str) -> str:
    """What a command prints; empty when it cannot be run."""
    try:
        done = subprocess.run(  # noqa: S603 (fixed command lines)
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    """Of the checkout that this is; empty for an installed package."""
    here = str(Path(__file__).absolute().parent)
    number = _said("git", "-C", here, "rev-parse", "HEAD")
    changed = _said("git", "-C", here, "status", "--porcelain", "--untracked-files=no")
    return number + (" with changes" if number and changed else "")


def facts(commit_given: str = "") -> dict[str, Any]:
    """For the report."""
    query = "name,driver_version,clocks.sm,clocks.max.sm,temperature.gpu,memory.total"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "gpupool": gpupool.__version__,
        "commit": commit_given or commit() or "unknown",
        "gpu": _said("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"),
        "kernel_module": _first_line("/proc/driver/nvidia/version", "NVRM version"),
        "cpu": _first_line("/proc/cpuinfo", "model name") or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": _first_line("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "system": _first_line("/etc/os-release", "PRETTY_NAME"),
        "load_at_start": os.getloadavg()[0],
    }
