"""Whatever is asked for in whatever order, and wherever hostd is killed: no GPU is promised twice,
sessions go on, and nothing is left over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.hostd.core.allocation import NoPlace
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.ports import AccountUse, PortError
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.vgpu import Quota, Vgpu, VgpuMode
from gpupool.hostd.core.vgpus import VgpuError, Vgpus
from tests.fakes.crashes import (
    Fuse,
    Killed,
    close_all,
    fused_ports,
    kill_at_every_moment,
    play,
)
from tests.hostd.test_host import DOOR, HELLO, PEER, Machine
from tests.hostd.test_vgpus import USABLE, machine, nothing_left

MIB = 1 << 20
NAMES = ("a", "b", "c")


class Rig:
    """A machine whose hostd is killed and started again."""

    def __init__(self, gpus: int) -> None:
        self.machine: Machine = machine(gpus)
        self.fuse = Fuse()
        self.start()

    def start(self) -> None:
        """A hostd, as after a start."""
        self.fuse.left = None
        close_all(self.machine)
        ports = fused_ports(self.machine, self.fuse, ("start",))
        one = self.machine
        self.host = Host(ports, one.limits, one.inventory)
        self.vgpus = Vgpus(self.host, ports.pages, ports.vgpus)
        self.host.adopt()

    def kill(self) -> None:
        """And another starts."""
        self.start()

    def ask(self, percent: int, mib: int, vgpu: str) -> object:
        """A client comes."""
        asks = replace(HELLO, compute_percent=percent, memory_mib=mib, vgpu=vgpu)
        return self.host.open(asks, PEER, DOOR, 7)

    def check(self) -> None:
        """What always holds."""
        one, host = self.machine, self.host
        for gpu in one.inventory.gpus:
            promised = host.allocations.table.promised(gpu.uuid)
            assert promised.compute_percent <= 100
            assert promised.memory_mib <= USABLE
            on_page = [row.quota for (name, _), row in one.pages.vgpus.items() if name == gpu.uuid]
            assert sum(quota.compute_percent for quota in on_page) <= 100
            assert sum(quota.memory_mib for quota in on_page) <= USABLE
        living = {session.id: session for session in host.sessions}
        assert set(one.workers.running) == set(living)  # none is lost, none is left over
        assert set(one.store.records) == set(living)
        assert {row.session_id for row in one.pages.sessions.values()} <= set(living)
        for session in living.values():
            for seat in session.seats:
                row = one.pages.sessions[seat.gpu, seat.session_row]
                assert (row.session_id, row.vgpu_row) == (session.id, seat.vgpu_row)
                assert one.pages.vgpus[seat.gpu, seat.vgpu_row].id == seat.vgpu
                assert one.pages.vgpus[seat.gpu, seat.vgpu_row].quota == session.quota
                assert one.pages.accounts[seat.vgpu][seat.account_row] == session.id
        assert {vgpu.name: vgpu for vgpu in host.allocations.table.named} == one.vgpus.records

    def end_all(self) -> None:
        """Every session and every vGPU goes."""
        for session_id in list(self.machine.workers.running):
            self.machine.workers.end(session_id)
        for name in list(self.machine.vgpus.records):
            self.vgpus.delete(name)
        assert nothing_left(self.machine)


def _end(rig: Rig, which: int) -> None:
    running = sorted(rig.machine.workers.running)
    if running:
        rig.machine.workers.end(running[which % len(running)])


def _end_unseen(rig: Rig, which: int) -> None:
    """A worker ends while no hostd is there."""
    running = sorted(rig.machine.workers.running)
    if running:
        del rig.machine.workers.running[running[which % len(running)]]
    rig.kill()


def _resize(rig: Rig, which: int, quota: Quota) -> None:
    known = rig.vgpus.all()
    if known:
        rig.vgpus.resize(known[which % len(known)].vgpu.id, quota)


def _use(rig: Rig, which: int, mib: int) -> None:
    """Programs allocate and contexts cost what they cost."""
    placed = [one for one in rig.host.allocations.table.placed if one.sessions]
    if placed:
        one = placed[which % len(placed)]
        used = min(mib, one.vgpu.quota.memory_mib or mib)
        rig.machine.pages.uses[one.vgpu.id] = AccountUse(used * MIB, 100 * MIB)


def _create(rig: Rig, name: str, quota: Quota, mode: VgpuMode) -> None:
    rig.vgpus.create(Vgpu(0, quota, name, mode))


def _delete(rig: Rig, name: str, force: bool) -> None:
    rig.vgpus.delete(name, force=force)


numbers = st.integers(0, 7)
shares = st.sampled_from([0, 1, 10, 30, 50, 60, 100])
sizes = st.sampled_from([0, 1, 1000, USABLE // 2, USABLE - 100, USABLE])
quotas = st.builds(Quota, shares, sizes)
names = st.sampled_from(NAMES)
Action = Callable[..., object]
actions: st.SearchStrategy[tuple[Any, ...]] = st.one_of(
    st.tuples(st.just(Rig.ask), shares, sizes, st.just("")),
    st.tuples(st.just(Rig.ask), shares, st.just(0), st.sampled_from(["~x", "~y"])),
    st.tuples(st.just(Rig.ask), st.just(0), st.just(0), names),
    st.tuples(st.just(_end), numbers),
    st.tuples(st.just(_end_unseen), numbers),
    st.tuples(st.just(_resize), numbers, quotas),
    st.tuples(st.just(_use), numbers, sizes),
    st.tuples(st.just(_create), names, quotas, st.sampled_from(VgpuMode)),
    st.tuples(st.just(_delete), names, st.booleans()),
)
# When the fuse of an action burns; mostly never.
fuses = st.one_of(st.none(), st.none(), st.integers(0, 30))


@settings(max_examples=400, deadline=None)
@given(st.integers(1, 3), st.lists(st.tuples(actions, fuses), max_size=25))
def test_any_order_and_any_moment(gpus: int, script: list[tuple[Any, int | None]]) -> None:
    play(Rig(gpus), script, VgpuError, PortError)


def test_every_moment_of_every_action() -> None:
    """Not left to chance: a kill at each step of what is done most."""

    def nothing(_: Rig) -> None:
        pass

    def used(rig: Rig) -> None:
        rig.vgpus.create(Vgpu(0, Quota(50, 100), "a"))
        assert isinstance(rig.ask(0, 0, "a"), Session)
        assert isinstance(rig.ask(0, 0, "a"), Session)

    def made(rig: Rig) -> None:
        rig.vgpus.create(Vgpu(0, Quota(50, 100), "a", VgpuMode.RESERVED))

    cases: list[tuple[Callable[[Rig], None], Action]] = [
        (nothing, lambda rig: rig.ask(60, 100, "")),
        (nothing, lambda rig: rig.ask(0, 0, "")),
        (nothing, made),
        (made, lambda rig: rig.ask(0, 0, "a")),
        (made, lambda rig: rig.vgpus.resize("a", Quota(80, 50))),
        (made, lambda rig: rig.vgpus.delete("a")),
        (used, lambda rig: rig.vgpus.resize("a", Quota(80, 50))),
        (used, lambda rig: rig.vgpus.delete("a", force=True)),
        (used, lambda rig: _end(rig, 0)),
    ]
    assert kill_at_every_moment(partial(Rig, 1), cases) > 80


def test_a_kill_while_a_later_hostd_looks_around() -> None:
    for moment in range(40):
        rig = Rig(1)
        rig.vgpus.create(Vgpu(0, Quota(50, 100), "a", VgpuMode.RESERVED))
        first, second = rig.ask(0, 0, "a"), rig.ask(30, 0, "")
        assert isinstance(first, Session)
        assert isinstance(second, Session)
        del rig.machine.workers.running[first.id]
        rig.fuse.left = moment
        with contextlib.suppress(Killed):
            rig.host.adopt()
        rig.kill()
        rig.check()
        assert isinstance(rig.ask(30, 0, ""), NoPlace)
        rig.end_all()
