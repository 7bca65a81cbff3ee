"""Wherever hostd is killed while domains come and go: no share is promised twice, what a VM that
runs has goes on, and nothing is left of others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.hostd.core.host import Host
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.vgpu import Quota, VgpuMode
from gpupool.hostd.core.vgpus import Vgpus
from gpupool.hostd.core.vm import VmError, VmOrder, VmState, VmVgpu, vm_of_owner
from gpupool.hostd.core.vms import Vms
from tests.fakes.crashes import (
    Fuse,
    Killable,
    Killed,
    close_all,
    fused_ports,
    kill_at_every_moment,
    play,
)
from tests.hostd.test_vgpus import machine, nothing_left
from tests.hostd.test_vms import A, B, Rig, share

C = "0b0c0d0e-0000-4000-8000-00000000000c"


class Fused(Rig):
    """A host whose hostd is killed and started again."""

    def __init__(self) -> None:
        self.fuse = Fuse()
        super().__init__(machine(2))
        self.running: set[str] = set()  # VMs whose start was not refused, and not released

    def start(self) -> None:
        """A hostd, as after a start; what the dead one had open is closed by the kernel."""
        one, fuse = self.machine, self.fuse
        fuse.left = None
        close_all(one)
        one.clock.waiting.clear()
        ports = fused_ports(one, fuse, ("start", "stop"))
        self.host = Host(ports, one.limits, one.inventory)
        self.vgpus = Vgpus(self.host, ports.pages, ports.vgpus)
        self.vms = Vms(
            self.host,
            self.vgpus,
            Killable(self.store, fuse, ("save", "remove", "save_right", "remove_right")),
            Killable(self.places, fuse, ("make", "remove")),
            one.clock,
            self.settings,
        )
        self.host.adopt()
        self.vms.adopt()

    def kill(self) -> None:
        """And another starts; a client whose session was told to end has gone by then."""
        for process, _ in self.machine.workers.stopped:
            for session_id, running in list(self.machine.workers.running.items()):
                if running == process:
                    del self.machine.workers.running[session_id]
        self.start()

    def let_end(self) -> None:
        """Workers that were told to end do so."""
        for process, _ in tuple(self.machine.workers.stopped):
            for session_id, running in list(self.machine.workers.running.items()):
                if running == process:
                    self.machine.workers.end(session_id)

    def check(self) -> None:
        """What always holds."""
        one = self.machine
        known = {facts.vm.uuid: facts for facts in self.vms.all()}
        assert self.running <= set(known)  # nobody who runs has lost anything
        assert set(known) == set(self.store.records)
        assert self.places.there == set(known)
        assert {vgpu.vm for vgpu in one.vgpus.records.values()} <= set(known)
        for uuid in self.running:
            vm = known[uuid].vm
            assert vm.state in (VmState.PREPARED, VmState.STARTED)
            assert known[uuid].vgpus, "it has a vGPU"
            assert self.door(uuid)[0].closed == ""
        cids = [facts.vm.cid for facts in known.values()]
        assert len(set(cids)) == len(cids)
        for gpu in one.inventory.gpus:
            promised = self.host.allocations.table.promised(gpu.uuid)
            assert promised.compute_percent <= 100
        told = {process for process, _ in one.workers.stopped}
        for session in self.host.sessions:  # none goes on without its VM
            process = one.workers.running[session.id]
            assert vm_of_owner(session.owner) in known or process in told

    def end_all(self) -> None:
        """Every VM is released."""
        for uuid in (A, B, C):
            self.vms.release(uuid)
        self.let_end()
        assert (self.places.there, self.store.records) == (set(), {})
        assert self.machine.vgpus.records == {}
        assert nothing_left(self.machine)


def _prepare(rig: Fused, uuid: str, wanted: tuple[VmVgpu, ...]) -> None:
    """As the hook does: where that fails, libvirt does not start it and calls release."""
    rig.running.discard(uuid)  # prepare means that it does not run now
    try:
        rig.vms.prepare(VmOrder(uuid, f"web-{uuid[-1]}", wanted))
    except (VmError, PortError):
        _release(rig, uuid)
        raise
    rig.running.add(uuid)


def _started(rig: Fused, uuid: str) -> None:
    rig.vms.started(uuid, 0)


def _release(rig: Fused, uuid: str) -> None:
    rig.running.discard(uuid)
    rig.vms.release(uuid)
    rig.let_end()


def _change(rig: Fused, uuid: str, wanted: tuple[VmVgpu, ...]) -> None:
    rig.vms.change(uuid, wanted)


def _client(rig: Fused, uuid: str) -> None:
    rig.client(uuid)


uuids = st.sampled_from((A, B, C))
wishes = st.lists(
    st.builds(
        VmVgpu,
        st.builds(Quota, st.sampled_from([1, 40, 60, 100]), st.sampled_from([1, 1000])),
        st.sampled_from(VgpuMode),
    ),
    min_size=1,
    max_size=3,
).map(tuple)
actions: st.SearchStrategy[tuple[Any, ...]] = st.one_of(
    st.tuples(st.just(_prepare), uuids, wishes),
    st.tuples(st.just(_started), uuids),
    st.tuples(st.just(_release), uuids),
    st.tuples(st.just(_change), uuids, wishes),
    st.tuples(st.just(_client), uuids),
)
# When the fuse of an action burns; mostly never.
fuses = st.one_of(st.none(), st.none(), st.integers(0, 40))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(actions, fuses), max_size=20))
def test_any_order_and_any_moment(script: list[tuple[Any, int | None]]) -> None:
    play(Fused(), script, VmError, PortError)


Action = Callable[[Fused], object]


def test_every_moment_of_every_action() -> None:
    """Not left to chance: a kill at each step of what is done most."""

    def nothing(_: Fused) -> None:
        pass

    def prepared(rig: Fused) -> None:
        _prepare(rig, A, (share(30), share(20)))

    def used(rig: Fused) -> None:
        prepared(rig)
        rig.vms.started(A, 0)
        assert isinstance(rig.client(A), Session)

    cases: list[tuple[Action, Action]] = [
        (nothing, prepared),
        (prepared, lambda rig: rig.vms.started(A, 0)),
        (prepared, lambda rig: rig.vms.change(A, (share(60),))),
        (prepared, lambda rig: rig.vms.change(A, (share(10), share(70), share(20)))),
        (prepared, lambda rig: _prepare(rig, A, (share(50),))),
        (used, lambda rig: rig.client(A)),
        (used, lambda rig: _release(rig, A)),
        (prepared, lambda rig: _release(rig, A)),
    ]
    assert kill_at_every_moment(Fused, cases) > 120


def test_a_kill_while_a_later_hostd_looks_around() -> None:
    for moment in range(60):
        rig = Fused()
        _prepare(rig, A, (share(30),))
        rig.client(A)
        _prepare(rig, B, (share(30),))
        rig.store.records.pop(B)  # left over, as after a reboot
        rig.running.discard(B)
        rig.places.there.add(C)
        rig.fuse.left = moment
        with contextlib.suppress(Killed):
            rig.vms.adopt()
        rig.kill()
        rig.check()
        assert {facts.vm.uuid for facts in rig.vms.all()} == {A}
        rig.end_all()


def test_a_release_that_fails_is_done_at_the_next() -> None:
    rig = Fused()
    _prepare(rig, A, (share(30),))
    rig.places.fail_remove = "device busy"
    for _ in range(2):
        with contextlib.suppress(PortError):
            rig.vms.release(A)
        assert rig.store.records[A].state is VmState.RELEASING
        assert rig.door(A)[0].closed
    rig.places.fail_remove = ""
    rig.running.clear()
    rig.kill()
    rig.check()
    assert rig.vms.all() == ()
