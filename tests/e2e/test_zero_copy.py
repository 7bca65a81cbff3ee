"""Sends by reference (MSG_ZEROCOPY): data, counters, and the end where the kernel copies anyway.

tests/cpp/test_zero_copy.cpp has what happens at the socket: notices, memory that is used again, no
room for notices.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import Host
from tests.e2e.observe import wait_for_line
from tests.e2e.test_lanes import COPIES

HELD = COPIES + "\nimport sys; sys.stdout.flush(); sys.stdin.readline()\n"


def configure(host: Host, word: str) -> None:
    """Workers that send so."""
    host.stop()
    path = host.folder / "hostd.toml"
    path.write_text(path.read_text().replace("[limits]", f'[limits]\nzero_copy = "{word}"', 1))
    host.start()


def sent_by_reference(host: Host, folder: Path, **variables: str) -> tuple[dict[str, int], int]:
    """What the client and the worker counted, over copies whose data was checked."""
    file = folder / "statistics.json"
    client = host.start_client(
        "tcp", sys.executable, "-c", HELD, GPUPOOL_STATISTICS_FILE=str(file), **variables
    )
    wait_for_line(client, "same")
    (session,) = host.sessions()
    client.communicate("go\n", timeout=60)
    assert client.returncode == 0
    counted: dict[str, int] = json.loads(file.read_text())["zero_copy"]
    return counted, session["counters"]["zero_copy_bytes"]


@pytest.mark.parametrize("connections", ["1", "4"])
def test_data_is_the_same_by_reference(own_host: Host, tmp_path: Path, connections: str) -> None:
    configure(own_host, "always")
    client, worker = sent_by_reference(
        own_host, tmp_path, GPUPOOL_TCP_ZEROCOPY="always", GPUPOOL_TCP_CONNECTIONS=connections
    )
    # Some 180 MB each way; the kernel of a busy machine may have no room for some.
    assert client["bytes"] > 100 << 20
    assert worker > 100 << 20


def test_where_the_kernel_copies_it_ends(own_host: Host, tmp_path: Path) -> None:
    """Loopback: a few notices on each of four connections say so."""
    client, worker = sent_by_reference(own_host, tmp_path)
    assert 0 < client["copied_after_all"] <= client["bytes"] < 40 << 20
    assert 0 < worker < 40 << 20


def test_off_is_off(own_host: Host, tmp_path: Path) -> None:
    configure(own_host, "off")
    client, worker = sent_by_reference(own_host, tmp_path, GPUPOOL_TCP_ZEROCOPY="off")
    assert client == {"bytes": 0, "copied_after_all": 0, "refused": 0}
    assert worker == 0


def test_a_wrong_word_is_named(host: Host) -> None:
    text = 'import ctypes; print(ctypes.CDLL("libcuda.so.1").cuInit(0))'
    done = host.run("tcp", sys.executable, "-c", text, GPUPOOL_TCP_ZEROCOPY="yes")
    assert done.stdout == "100\n"
    assert "GPUPOOL_TCP_ZEROCOPY is 'yes'; it must be auto, off or always" in done.stderr
