"""What libvirt tells of running domains takes effect, as far as their rights go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupool.hostd.core.vm import VmState
from gpupool.hostd.core.vm_follow import SeenDomain, VmFollower
from gpupool.hostd.core.vms import VmSettings
from tests.hostd.test_vms import A, B, Rig, order, share


@pytest.fixture
def rig() -> Rig:
    """The kernel is the vsock device of its VMs."""
    return Rig(settings=VmSettings(relay=False, window_mib=1024))


def seen(uuid: str, *percents: int, cid: int = 0) -> SeenDomain:
    return SeenDomain(uuid, f"web-{uuid[-1:]}", tuple(share(one) for one in percents), cid=cid)


def started(rig: Rig, uuid: str) -> None:
    rig.vms.prepare(order(uuid))
    rig.vms.started(uuid, 0)


def percents(rig: Rig, uuid: str) -> list[int]:
    return [one.quota.compute_percent for one in rig.vms.vgpus_of(uuid)]


def test_changed_metadata_changes_the_vgpus(rig: Rig) -> None:
    started(rig, A)
    follower = VmFollower(rig.vms)
    follower.changed(seen(A, 40, 10))
    assert percents(rig, A) == [40, 10]
    follower.changed(seen(A, 101, 10))  # more than its right: it keeps what it has
    assert percents(rig, A) == [40, 10]
    follower.changed(replace(seen(A), problem="compute: given 'x'"))
    assert percents(rig, A) == [40, 10]
    follower.changed(seen(A))
    assert rig.vms.all() == ()


def test_a_start_is_the_hooks(rig: Rig) -> None:
    rig.vms.prepare(order(A))
    follower = VmFollower(rig.vms)
    follower.changed(seen(A))
    assert rig.vms.get(A).state is VmState.PREPARED
    assert percents(rig, A) == [25]


def test_a_running_domain_that_asks_is_served_if_it_can_be_reached(rig: Rig) -> None:
    follower = VmFollower(rig.vms)
    follower.changed(seen(A, 30))  # no vsock device
    assert rig.vms.all() == ()
    follower.changed(seen(A, 30, cid=7))
    assert (rig.vms.get(A).state, rig.vms.get(A).cid) == (VmState.STARTED, 7)
    rig.vms.rights.disallow(B)
    follower.changed(seen(B, 30, cid=8))
    assert [facts.vm.uuid for facts in rig.vms.all()] == [A]


def test_what_ended_unnoticed_is_released_once(rig: Rig) -> None:
    for uuid in (A, B):
        started(rig, uuid)
    follower = VmFollower(rig.vms)
    follower.running([seen(A, 25)])
    assert [facts.vm.uuid for facts in rig.vms.all()] == [A]
    follower.running([])  # libvirt came back: its hook has told of what ended
    assert [facts.vm.uuid for facts in rig.vms.all()] == [A]


def test_what_was_started_anew_since_is_left_alone(rig: Rig) -> None:
    started(rig, A)
    follower = VmFollower(rig.vms)
    rig.vms.release(A)
    rig.machine.clock.utc = "2099-01-01T00:00:00Z"
    started(rig, A)
    follower.running([])
    assert rig.vms.get(A).state is VmState.STARTED
