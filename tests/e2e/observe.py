"""Looking at client and worker processes from outside."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import Host

TICKS_PER_S = os.sysconf("SC_CLK_TCK")

# Adds one, says so, again and again; ends at the end of its standard input.
STEPPER = """
import sys
from tests.e2e.client import *
counter = Counter()
print("running", flush=True)
for line in sys.stdin:
    assert counter.add() == 0
    print(counter.value(), flush=True)
"""

ADD_ONCE = """
from tests.e2e.client import *
counter = Counter()
counter.add()
print(counter.value())
"""


def stat_fields(pid: int) -> list[str]:
    """What proc(5) lists for /proc/PID/stat, from field 3 (state) on; empty when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def gone(pid: int) -> bool:
    """Whether the process has ended (a zombie has)."""
    fields = stat_fields(pid)
    return not fields or fields[0] == "Z"


def cpu_s(pid: int) -> float:
    """Processor time of all threads of a process so far, user and system."""
    fields = stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def wait_for_line(client: subprocess.Popen[str], line: str) -> None:
    """Reads one line of a client's output; the failure shows what it wrote on stderr."""
    assert client.stdout is not None
    first = client.stdout.readline().strip()
    if first != line:
        client.kill()
        _, errors = client.communicate()
        raise AssertionError(f"expected {line!r}, got {first!r}: {errors}")


def step(client: subprocess.Popen[str]) -> str:
    """Lets a STEPPER add one; what it says."""
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write("go\n")
    client.stdin.flush()
    return client.stdout.readline().strip()


def only_session(host: Host) -> dict[str, Any]:
    """The session of the one client that this host has."""
    sessions = host.sessions()
    assert len(sessions) == 1, sessions
    return sessions[0]


def worker_of(host: Host) -> int:
    """The pid of the one worker that this host has."""
    return int(only_session(host)["worker_pid"])
