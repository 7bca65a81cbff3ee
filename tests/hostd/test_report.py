"""What a guest is told: its quota, its own use, constants of the cards; nothing of anybody else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupool.hostd.core.admission import Door, Limits, Refusal
from gpupool.hostd.core.gpu import Card, Gpu, Inventory
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.peer import Peer
from gpupool.hostd.core.ports import DeviceUsage
from gpupool.hostd.core.report import OwnSession, make_report
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.vgpu import Quota
from gpupool.wire.hello import TransportKind, WelcomeStatus
from gpupool.wire.query import UNKNOWN, Query, Report
from tests.hostd.test_host import DOOR, HELLO, PEER, Machine
from tests.hostd.test_session import SESSION

LIMITS = Limits(max_sessions=9, window_mib=64, default_compute_percent=0, default_memory_mib=0)
GIB = 1 << 30
# As NVML lists them; told in the order of the bus.
FIRST = Gpu("GPU-b", "B", 80 * 1024, "nvidia", 0, "00000000:2A:00.0", "9.0", Card(80 * GIB, GIB))
SECOND = Gpu("GPU-a", "A", 16 * 1024, "nvidia", 1, "00000000:0A:00.0", "7.5")
INVENTORY = Inventory((FIRST, SECOND), "/lib/libcuda.so.1", "580.95.05", cuda_version=13000)
OWN = OwnSession(
    replace(SESSION, devices=("GPU-b", "GPU-a"), client_pid=7, program="python3"),
    (DeviceUsage(3 * GIB, 40), DeviceUsage(0, 0)),
)


def test_nvmls_order_is_the_bus() -> None:
    report = make_report(Quota(), INVENTORY, [OWN], "0.1.0")
    assert [gpu.uuid for gpu in report.gpus] == ["GPU-a", "GPU-b"]
    assert [(one.gpu, one.pid, one.used_bytes) for one in report.processes] == [
        (0, 7, 0),
        (1, 7, 3 * GIB),
    ]


def test_peers_are_places_in_the_report() -> None:
    card = replace(FIRST.card, peers=(("GPU-a",), (), ("GPU-a", "GPU-gone"), (), ()))
    inventory = replace(INVENTORY, gpus=(replace(FIRST, card=card), SECOND))
    second, first = make_report(Quota(), inventory, [], "0.1.0").gpus
    assert (first.peers_read, first.peers_write, first.peers_nvlink) == (1, 0, 1)
    assert second.peers_read == 0


def test_without_a_quota_the_card_is_the_memory() -> None:
    gpu = make_report(Quota(), INVENTORY, [OWN, OWN], "0.1.0").gpus[1]
    assert (gpu.total_bytes, gpu.reserved_bytes, gpu.used_bytes) == (80 * GIB, GIB, 6 * GIB)
    assert gpu.utilization_percent == 80
    assert (gpu.compute_major, gpu.compute_minor) == (9, 0)
    assert gpu.cores == UNKNOWN


def test_a_quota_is_the_memory() -> None:
    for gpu in make_report(Quota(memory_mib=2048), INVENTORY, [], "0.1.0").gpus:
        assert (gpu.total_bytes, gpu.reserved_bytes, gpu.used_bytes) == (2 * GIB, 0, 0)


def test_a_quota_above_the_card_is_the_card() -> None:
    report = make_report(Quota(memory_mib=32 * 1024), INVENTORY, [], "0.1.0")
    assert [gpu.total_bytes >> 30 for gpu in report.gpus] == [16, 32]


def test_the_software_gpu_has_a_version_that_programs_can_read() -> None:
    inventory = replace(INVENTORY, driver_version="software")
    assert make_report(Quota(), inventory, [], "0.1.0").driver_version == "580.00"


@pytest.fixture
def host() -> Host:
    """A hostd with one session of PEER that uses 5 bytes."""
    machine = Machine()
    host = machine.host()
    host.open(HELLO, PEER, DOOR, 7)
    machine.store.usages[1] = (DeviceUsage(5, 0),)
    return host


@pytest.mark.parametrize(
    ("peer", "door", "seen"),
    [
        (PEER, DOOR, True),
        (replace(PEER, pid=99), DOOR, True),
        (replace(PEER, uid=0), DOOR, False),
        (PEER, replace(DOOR, name="unix:/other"), False),
        (Peer(address="10.0.0.1:5"), replace(DOOR, name="tcp://h:1"), False),
    ],
)
def test_who_sees_whom(host: Host, peer: Peer, door: Door, seen: bool) -> None:
    report = host.report(Query(), peer, door, "0.1.0")
    assert isinstance(report, Report)
    assert bool(report.processes) == seen
    assert report.gpus[0].used_bytes == (5 if seen else 0)


def test_over_tcp_the_address_counts_and_not_the_port() -> None:
    machine = Machine()
    host = machine.host()
    door = replace(DOOR, name="tcp://h:1")
    hello = replace(HELLO, transport=TransportKind.TCP)
    host.open(hello, Peer(address="10.0.0.1:5"), door, 7)
    found = [
        host.report(Query(), Peer(address=each), door, "0.1.0")
        for each in ("10.0.0.1:6", "10.0.0.2:5")
    ]
    assert [bool(isinstance(one, Report) and one.processes) for one in found] == [True, False]


def test_the_token_is_needed(host: Host) -> None:
    door = replace(DOOR, token=b"secret")
    answer = host.report(Query(token=b"wrong"), PEER, door, "0.1.0")
    assert isinstance(answer, Refusal)
    assert answer.status is WelcomeStatus.TOKEN
    assert isinstance(host.report(Query(token=b"secret"), PEER, door, "0.1.0"), Report)


def test_a_host_without_a_gpu_says_so() -> None:
    machine = Machine()
    host = machine.host()
    host.inventory = Inventory((), "", notes=("no NVIDIA driver",))
    answer = host.report(Query(), PEER, DOOR, "0.1.0")
    assert isinstance(answer, Refusal)
    assert "no NVIDIA driver" in answer.text


def test_what_a_guest_sees_of_vgpus() -> None:
    """Its own where it has one; of a vGPU that is shared, that one's sessions; else its user's."""
    machine = Machine(limits=LIMITS)
    host = machine.host()

    def open_one(pid: int, **more: Any) -> None:
        answer = host.open(replace(HELLO, pid=pid, **more), PEER, DOOR, 7)
        assert isinstance(answer, Session), answer

    open_one(10)
    open_one(11, compute_percent=60, vgpu="~k")
    open_one(12, compute_percent=60, vgpu="~k")

    def seen(**more: Any) -> tuple[int, int, list[int]]:
        report = host.report(Query(**more), PEER, DOOR, "0.1.0")
        assert isinstance(report, Report)
        pids = sorted({process.pid for process in report.processes})
        return len(report.gpus), report.gpus[0].compute_percent, pids

    assert seen() == (8, 0, [10, 11, 12])
    assert seen(pid=10) == (8, 0, [10, 11, 12])
    assert seen(pid=11) == (1, 60, [11, 12])
    assert seen(compute_percent=60, vgpu="~k") == (1, 60, [11, 12])
    assert seen(compute_percent=30) == (8, 30, [10, 11, 12])
