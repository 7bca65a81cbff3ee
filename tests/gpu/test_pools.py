"""A real card leaves the pool for containers and comes back. Binding drivers is left to operators:
the machine of a test may have no IOMMU, and a card that does not come back needs a reboot.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool.hostd.adapters.pci_devices import SysfsPci
from tests.conftest import Host, end_host, make_host
from tests.e2e.test_pools import gpus, specification, start, switch, wait_for_end

pytestmark = pytest.mark.gpu

NODES = {"/dev/nvidiactl", "/dev/nvidia-uvm"}


def parents(pid: int) -> Iterator[int]:
    """The processes above one, as far as they live."""
    while pid > 1:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        pid = next(int(line.split()[1]) for line in status.splitlines() if "PPid" in line)
        yield pid


@pytest.fixture
def cards() -> Iterator[Host]:
    """A hostd of the test's own on every NVIDIA GPU."""
    if not Path("/dev/nvidiactl").exists():
        pytest.skip("no NVIDIA GPU: /dev/nvidiactl is missing")
    with tempfile.TemporaryDirectory(prefix="gpupool-gpu-") as name:
        folder = Path(name)
        one = make_host(folder, gpu="nvidia", more=f'[pool]\ncdi_dir = "{folder}/cdi"\n')
        yield one
        end_host(one)


def test_a_card_for_containers(cards: Host, transport: str) -> None:
    shown = gpus(cards)
    card = shown[-1]
    client, count = start(cards, transport)
    assert count == len(shown)
    begun = switch(cards, card["uuid"], "native", deadline_s=1)
    ended = wait_for_end(cards, begun)
    assert ended["state"] == "succeeded", ended
    client.communicate(timeout=60)
    if len(shown) == 1:
        done = cards.run(
            transport, sys.executable, "-c", "from tests.e2e.client import *\nCounter()"
        )
        assert done.returncode != 0
        assert "given out whole" in done.stderr
    content = json.loads(specification(cards, card["uuid"]).read_text())
    edits = content["devices"][0]["containerEdits"]
    nodes = {node["path"] for node in edits["deviceNodes"]}
    assert nodes >= NODES
    assert all(Path(node).exists() for node in nodes)
    # Other tests' hostds have workers on it.
    assert cards.process is not None
    hostd = cards.process.pid
    holders = SysfsPci().holders(card["pci_address"])
    own = [one for one in holders if hostd in (one.pid, *parents(one.pid))]
    assert not own, (own, holders)
    back = wait_for_end(cards, switch(cards, card["uuid"], "pooled"))
    assert back["state"] == "succeeded", back
    again, count = start(cards, transport)
    assert count == len(shown)
    again.communicate("x\n", timeout=60)
    assert again.returncode == 0


def test_a_worker_has_only_its_own_cards_open(cards: Host) -> None:
    """Else a card could not be given to a virtual machine while others are in use."""
    shown = gpus(cards)
    if len(shown) < 2:
        pytest.skip("needs two NVIDIA GPUs")
    card = shown[-1]
    assert wait_for_end(cards, switch(cards, card["uuid"], "native"))["state"] == "succeeded"
    client, _ = start(cards, "shm")
    workers = {session["worker_pid"] for session in cards.sessions()}
    holders = SysfsPci().holders(card["pci_address"])
    client.communicate("x\n", timeout=60)
    assert not workers & {one.pid for one in holders}
