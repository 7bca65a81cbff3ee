"""Workers started ahead of need, with real processes."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.conftest import Host
from tests.e2e.observe import gone

PROGRAM = """
import sys
from tests.e2e.client import *
counter = Counter()
for _ in range(5):
    assert counter.add() == 0
assert counter.value() == 5, counter.value()
print("counted", flush=True)
sys.stdin.read(1)
"""


def waiting(host: Host) -> list[int]:
    """The processes that wait for a client, from their command lines."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        parent = f"PPid:\t{host.process.pid}\n" if host.process else ""
        ours = b"--order-fd" in words and b"0" * 20 in words
        if ours and parent in (folder / "status").read_text():
            found.append(int(folder.name))
    return found


def run(host: Host, transport: str) -> int:
    """One program to its end. Returns the pid of the worker that served it."""
    client = host.start_client(transport, sys.executable, "-c", PROGRAM)
    assert client.stdout is not None
    line = client.stdout.readline()
    worker: int = host.sessions()[-1]["worker_pid"]
    output, errors = client.communicate("x", timeout=60)
    assert client.returncode == 0, (line, output, errors)
    assert line == "counted\n"
    return worker


def configure(host: Host, text: str) -> None:
    """Starts it anew with more configuration; one worker waits, unless it says otherwise."""
    if "workers" not in text:
        text = f"workers = 1\n{text}"
    host.stop()
    path = host.folder / "hostd.toml"
    path.write_text(path.read_text().replace("[limits]", f"[ahead]\n{text}\n[limits]", 1))
    host.start()


@pytest.mark.parametrize("context", ["true", "false"])
def test_the_second_program_gets_one_that_waited(
    own_host: Host, transport: str, context: str
) -> None:
    configure(own_host, f"context = {context}")
    first = run(own_host, transport)
    own_host.wait_until(lambda: len(waiting(own_host)) == 1, "a worker to wait")
    (ready,) = waiting(own_host)
    assert ready != first
    assert run(own_host, transport) == ready  # it serves one client and ends
    own_host.wait_until(lambda: gone(ready), "it to end")
    own_host.wait_until(lambda: len(waiting(own_host)) == 1, "another to wait")
    assert waiting(own_host) != [ready]


def test_its_session_is_found_again(own_host: Host, transport: str) -> None:
    configure(own_host, "")
    run(own_host, transport)
    own_host.wait_until(lambda: len(waiting(own_host)) == 1, "a worker to wait")
    (ready,) = waiting(own_host)
    client = own_host.start_client(transport, sys.executable, "-c", PROGRAM)
    assert client.stdout is not None
    assert client.stdout.readline() == "counted\n"
    (session,) = own_host.sessions()
    words = Path(f"/proc/{ready}/cmdline").read_bytes().split(b"\0")
    assert words[words.index(b"--session-id") + 1] == str(session["id"]).encode()
    # As if hostd had died between starting the worker and writing down where it runs.
    own_host.stop()
    record = own_host.folder / "state" / "sessions" / f"{session['id']}.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "state": "starting", "worker_pid": 0}))
    own_host.start()
    (again,) = own_host.sessions()
    assert (again["id"], again["worker_pid"]) == (session["id"], ready)
    client.communicate("x", timeout=60)


def test_those_that_wait_end_with_hostd(own_host: Host) -> None:
    configure(own_host, "workers = 2")
    run(own_host, "shm")
    own_host.wait_until(lambda: len(waiting(own_host)) == 2, "two workers to wait")
    both = waiting(own_host)
    assert own_host.process is not None
    own_host.process.kill()
    own_host.process.wait()
    own_host.wait_until(lambda: all(gone(pid) for pid in both), "them to end")
    own_host.start()


def test_one_that_dies_is_told_and_not_used(own_host: Host) -> None:
    configure(own_host, "")
    run(own_host, "shm")
    own_host.wait_until(lambda: len(waiting(own_host)) == 1, "a worker to wait")
    (ready,) = waiting(own_host)
    os.kill(ready, signal.SIGKILL)
    own_host.wait_until(lambda: "started ahead of need has ended" in own_host.log, "the log")
    assert run(own_host, "shm") != ready


def test_they_are_killed_when_the_tenant_stays_away(own_host: Host) -> None:
    configure(own_host, "keep_s = 2")
    run(own_host, "shm")
    own_host.wait_until(lambda: len(waiting(own_host)) == 1, "a worker to wait")
    (ready,) = waiting(own_host)
    own_host.wait_until(lambda: gone(ready), "it to be ended")
    assert "started ahead of need has ended" not in own_host.log


def test_none_where_none_are_wanted(own_host: Host) -> None:
    configure(own_host, "workers = 0")
    run(own_host, "shm")
    run(own_host, "shm")
    assert waiting(own_host) == []
