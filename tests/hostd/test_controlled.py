"""The controller's vGPUs on a node: put into effect, used, reported; with fakes for the machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from gpupool.hostd.core.admission import Refusal
from gpupool.hostd.core.controlled import Ask, Controlled, Found, Missing, Mistaken
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.link import (
    Claim,
    ClaimAnswer,
    ClaimOutcome,
    Desired,
    DesiredVgpu,
    GpuState,
    NodeGpu,
    Picture,
    SessionEnd,
)
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.session import Session, SessionState
from gpupool.hostd.core.vgpu import Quota, Vgpu
from gpupool.hostd.core.vgpus import Vgpus
from tests.fakes.link_store import FakeLinkStore
from tests.hostd.test_host import DOOR, HELLO, PEER, Machine
from tests.hostd.test_vgpus import ALL, USABLE, machine

GPU = ALL.gpus[0].uuid
CLAIM = Claim("claim-1", "lent", "", "python3")


@dataclass
class Rig:
    """One machine and a hostd on it."""

    machine: Machine
    store: FakeLinkStore
    host: Host
    vgpus: Vgpus
    controlled: Controlled

    @classmethod
    def make(cls, store: FakeLinkStore | None = None, old: Machine | None = None) -> Rig:
        """A hostd; on an old machine, one that was started again."""
        one, store = old or machine(1), store or FakeLinkStore()
        host = one.host()
        host.adopt()
        vgpus = Vgpus(host, one.pages, one.vgpus)
        gpus = (NodeGpu(GPU, "H100", USABLE, 0),)
        controlled = Controlled(host, vgpus, store, one.clock, lambda: gpus, end_grace_s=10)
        host.on_change.append(controlled.run)
        return cls(one, store, host, vgpus, controlled)

    def client(self, **more: Any) -> Session:
        """A session that was let in."""
        answer = self.host.open(replace(HELLO, **more), PEER, DOOR, 7)
        assert isinstance(answer, Session), answer
        return answer

    def apply(self, generation: int, *vgpus: DesiredVgpu, deleting: tuple[str, ...] = ()) -> bool:
        """The controller wants this."""
        return self.controlled.apply(Desired(generation, vgpus, deleting=deleting))

    @property
    def gpu(self) -> GpuState:
        """The one GPU, as it is reported."""
        (one,) = self.controlled.picture().gpus
        return one


@pytest.fixture
def rig() -> Rig:
    return Rig.make()


def wanted(name: str, percent: int = 40, **more: Any) -> DesiredVgpu:
    facts = {"tenant": "tenant-1", "tenant_name": "acme", "gpu": GPU, "on_demand": False, **more}
    return DesiredVgpu(id=f"vgpu-{name}", name=name, quota=Quota(percent, 100), **facts)


def ids(picture: Picture) -> list[tuple[str, int]]:
    return [(one.id, one.compute_percent) for one in picture.vgpus]


def test_what_is_wanted_is_there_and_reported(rig: Rig) -> None:
    assert rig.controlled.picture().applied_generation == 0
    rig.apply(3, wanted("a"))
    assert rig.controlled.look_up("a", "") == Found("a")
    picture = rig.controlled.picture()
    assert picture.applied_generation == 3
    assert ids(picture) == [("vgpu-a", 40)]
    assert (rig.gpu.local_compute_percent, rig.gpu.local_memory_mib) == (0, 0)
    assert rig.client(vgpu="a").compute_percent == 40


def test_an_older_wish_changes_nothing(rig: Rig) -> None:
    rig.apply(3, wanted("a"))
    assert not rig.apply(2)
    assert ids(rig.controlled.picture()) == [("vgpu-a", 40)]
    rig.controlled.begin()
    assert rig.apply(1)
    assert ids(rig.controlled.picture()) == []


def test_what_has_no_room_comes_when_there_is_some(rig: Rig) -> None:
    mine = rig.client(compute_percent=80)
    rig.apply(1, wanted("a"))
    assert isinstance(rig.controlled.look_up("a", ""), Missing)
    assert "40% compute" in rig.controlled.not_done["vgpu-a"]
    assert rig.gpu.local_compute_percent == 80
    rig.machine.workers.end(mine.id)
    assert rig.controlled.look_up("a", "") == Found("a")
    assert rig.gpu.local_compute_percent == 0


def test_a_session_outlives_a_vgpu_that_went_elsewhere(rig: Rig) -> None:
    rig.apply(1, wanted("a"))
    session = rig.client(vgpu="a")
    rig.apply(2)
    assert rig.host.sessions == (session,)
    assert isinstance(rig.controlled.look_up("a", ""), Ask)
    assert rig.gpu.local_compute_percent == 40, "nobody may be given it"
    (fact,) = rig.controlled.picture().sessions
    assert (fact.id, fact.vgpu) == (str(session.id), "vgpu-a")
    rig.machine.workers.end(session.id)
    assert rig.controlled.picture().vgpus == ()
    assert rig.gpu.local_compute_percent == 0


def test_sessions_of_a_deleted_vgpu_are_ended_by_force_if_need_be(rig: Rig) -> None:
    rig.apply(1, wanted("a"))
    session = rig.client(vgpu="a")
    rig.apply(2, deleting=("vgpu-a",))
    assert [kill for _, kill in rig.machine.workers.stopped] == [False]
    assert ids(rig.controlled.picture()) == [("vgpu-a", 40)], "it is there until they are gone"
    rig.machine.clock.pass_time(11)
    assert [kill for _, kill in rig.machine.workers.stopped] == [False, True]
    rig.machine.workers.end(session.id)
    assert rig.controlled.picture().vgpus == ()


def test_a_claim_is_reported_until_its_session_is(rig: Rig) -> None:
    rig.apply(1)
    assert isinstance(rig.controlled.look_up("lent", ""), Ask)
    lent = wanted("lent", on_demand=True)
    answer = ClaimAnswer(ClaimOutcome.GRANTED, "", lent, generation=2)
    assert rig.controlled.granted(CLAIM, answer) == Found("lent")
    assert not rig.apply(1), "made before the claim"
    assert [one.id for one in rig.controlled.picture().sessions] == ["claim-1"]
    session = rig.client(vgpu="lent")
    rig.controlled.closed("claim-1")
    assert [one.id for one in rig.controlled.picture().sessions] == [str(session.id)]
    assert isinstance(rig.controlled.look_up("lent", ""), Ask), "each client asks"


def test_a_restart_without_the_controller_forgets_nothing(rig: Rig) -> None:
    rig.apply(5, wanted("a"), wanted("lent", 20, on_demand=True))
    session = rig.client(vgpu="a")
    again = Rig.make(rig.store, rig.machine)
    assert [one.id for one in again.host.sessions] == [session.id]
    assert again.controlled.look_up("a", "acme") == Found("a")
    assert isinstance(again.controlled.look_up("lent", ""), Ask)
    assert not again.controlled.known
    assert again.apply(5, wanted("a", 10))
    assert ids(again.controlled.picture()) == [("vgpu-a", 10)]


def test_a_disk_that_is_full_changes_nothing(rig: Rig) -> None:
    rig.store.fail = "no space left"
    with pytest.raises(PortError):
        rig.apply(1, wanted("a"))
    assert rig.controlled.picture().vgpus == ()
    assert not rig.controlled.known


def test_a_name_that_is_taken_here_does_not_hide_the_controllers(rig: Rig) -> None:
    rig.vgpus.create(Vgpu(0, Quota(5), "a"))
    rig.apply(1, wanted("a"))
    assert rig.controlled.is_local("a")
    assert rig.controlled.look_up("vgpu-a", "") == Found("vgpu-a")


def test_tenants_keep_to_their_own(rig: Rig) -> None:
    theirs = replace(wanted("a", 10), id="vgpu-b", tenant="tenant-2", tenant_name="umbra")
    rig.apply(1, wanted("a"), theirs)
    assert rig.controlled.look_up("a", "acme") == Found("a")
    assert rig.controlled.look_up("a", "tenant-2") == Found("vgpu-b")
    assert isinstance(rig.controlled.look_up("a", ""), Mistaken)
    assert isinstance(rig.controlled.look_up("vgpu-b", "acme"), Ask), "the controller refuses"


def test_a_session_that_somebody_ends(rig: Rig) -> None:
    """Only the one that was meant: numbers begin anew with a boot."""
    session, other = rig.client(compute_percent=10), rig.client(compute_percent=10)
    (fact, _) = rig.controlled.picture().sessions
    another_boot = SessionEnd(str(other.id), fact.started_ms + 1)
    ending = (SessionEnd(fact.id, fact.started_ms), another_boot, SessionEnd("999", 1))
    rig.controlled.apply(Desired(1, ending=ending))
    states = {one.id: one.state for one in rig.host.sessions}
    assert states == {session.id: SessionState.ENDING, other.id: SessionState.RUNNING}
    rig.controlled.run()
    assert [kill for _, kill in rig.machine.workers.stopped] == [False], "told once"
    rig.machine.clock.pass_time(11)
    assert [kill for _, kill in rig.machine.workers.stopped] == [False, True]
    rig.machine.workers.end(session.id)
    assert [one.id for one in rig.host.sessions] == [other.id]


def test_a_host_that_is_drained_lets_nobody_in_also_after_a_restart() -> None:
    store = FakeLinkStore()
    rig = Rig.make(store)
    session = rig.client(compute_percent=10)
    rig.controlled.apply(Desired(1, (wanted("a"),), draining=True))
    refused = rig.host.open(replace(HELLO, vgpu="a"), PEER, DOOR, 7)
    assert isinstance(refused, Refusal)
    assert "being drained" in refused.text
    assert len(refused.text) < 255
    assert rig.host.sessions == (session,)
    again = Rig.make(store, rig.machine)
    assert isinstance(again.host.open(HELLO, PEER, DOOR, 7), Refusal)
    again.controlled.begin()
    again.controlled.apply(Desired(1, (wanted("a"),)))
    again.client(vgpu="a")
