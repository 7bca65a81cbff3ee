"""A host that is gone without a word: the kernel watches a waiting program's connections."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import Host

IDLE = """
import sys
from tests.e2e.client import *
counter = Counter()
assert counter.add() == 0 and counter.value() == 1
print("idle", flush=True)
sys.stdin.read()
"""
_ESTABLISHED = "01"
_KEEPALIVE = "02"  # proc(5), /proc/net/tcp: which timer runs


def timers(pid: int) -> list[str]:
    """The timer of each TCP connection of a process."""
    links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    mine = [row for row in rows if row[9] in inodes and row[3] == _ESTABLISHED]
    return [row[5].partition(":")[0] for row in mine]


@pytest.mark.softgpu
def test_an_idle_program_notices_that_its_host_is_gone(host: Host) -> None:
    client = host.start_client("tcp", sys.executable, "-c", IDLE)
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == "idle\n"
        # What was sent last has its own timer until it is acknowledged.
        host.wait_until(lambda: set(timers(client.pid)) == {_KEEPALIVE}, "only keep-alive")
        assert len(timers(client.pid)) == 4  # docs/configuration.md, GPUPOOL_TCP_CONNECTIONS
    finally:
        _, errors = client.communicate(timeout=60)
    assert client.returncode == 0, errors
