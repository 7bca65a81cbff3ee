"""Reports as differences: where one is taken, the whole picture after it changes nothing more."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gpupool.controller.core import allocation, fleet, reporting
from gpupool.controller.core.errors import RefusedError
from gpupool.controller.core.gpu import Pool as GpuPool
from gpupool.controller.core.node import Changes, Report, Reported, SessionReport
from gpupool.controller.core.ports import Page, Tables
from gpupool.controller.core.vgpu import Change, Mode, Selector, State, VgpuReport
from tests.controller.pool import FakeNode, Pool

_numbers = itertools.count()


class Teller:
    """Tells what a fake node has, as hostd does: by differences from what was accepted last."""

    def __init__(self, pool: Pool, node: FakeNode) -> None:
        self.pool = pool
        self.node = node
        self.taken: Report | None = None
        self.wholes = 0
        self.beside: Teller | None = None  # tells in the same transaction, each time

    def changes(self, now: Report) -> Changes:
        """From the last that was accepted."""
        before = self.taken
        assert before is not None
        desired = self.pool.store.read(lambda tables: fleet.desired(tables, self.node.id))
        there = {one.id for one in now.vgpus}
        wanted = {one.id for one in desired.vgpus}
        loose = set(desired.deleting) | (wanted - there)
        running = {(one.id, one.vgpu_id) for one in now.sessions}
        return Changes(
            node_id=now.node_id,
            incarnation=now.incarnation,
            sequence=now.sequence,
            applied_generation=now.applied_generation,
            since=before.sequence,
            gpus=tuple(one for one in now.gpus if one not in before.gpus),
            vgpus=tuple(one for one in now.vgpus if one not in before.vgpus or one.id in loose),
            vgpus_gone=tuple(({one.id for one in before.vgpus} | loose) - there),
            sessions=tuple(one for one in now.sessions if one not in before.sessions),
            sessions_gone=tuple(
                (one.id, one.vgpu_id)
                for one in before.sessions
                if (one.id, one.vgpu_id) not in running
            ),
        )

    def send(self, changes: Changes) -> Reported:
        """One difference."""
        if self.beside is None:
            return self.pool.store.change(lambda tables: reporting.changes(tables, changes))
        return self.together(changes, self.beside)

    def together(self, changes: Changes, other: Teller) -> Reported:
        """The same, with one of another node; what becomes of this one."""
        other.node.sequence += 1
        now = other.node.picture(other.node.sequence)
        both = [changes, other.changes(now)]
        told, its = self.pool.store.change(lambda tables: reporting.changes_of(tables, both))
        assert its.accepted
        other.taken = now
        return told

    def tell(self, **picture: Any) -> Reported:
        """As a difference where that is possible, else whole."""
        self.node.sequence += 1
        now = self.node.picture(self.node.sequence, **picture)
        if self.taken is not None:
            told = self.send(self.changes(now))
            if told.accepted:
                self.taken = now
                return told
            assert told.whole
            self.wholes += 1
            self.node.sequence += 1
            now = self.node.picture(self.node.sequence, **picture)
        told = self.node.send(now)
        self.taken = now if told.accepted else None
        return told


@pytest.fixture
def teller(pool: Pool) -> Teller:
    """A node with two GPUs that has told a whole picture."""
    one = Teller(pool, pool.node(gpus=2))
    one.tell()
    return one


def kept(pool: Pool) -> list[Any]:
    """What the controller holds to be so."""

    def work(tables: Tables) -> list[Any]:
        page = Page(1000)
        return [
            [
                (one.id, one.state, one.share, one.held, one.gpu_id)
                for one in tables.vgpus.page(page)
            ],
            tables.sessions.page(page),
            [(one.id, one.pool, one.pool_wanted, one.healthy) for one in tables.gpus.page(page)],
            [(one.id, one.state) for one in tables.operations.page(page)],
        ]

    return pool.store.read(work)


def test_a_difference_says_what_is_new(pool: Pool, teller: Teller) -> None:
    tenant = pool.tenant()
    old, new = pool.create(tenant, "old"), pool.create(tenant, "new")
    assert teller.tell().accepted
    assert pool.vgpu(old.id).state is State.READY
    third = pool.create(tenant, "third")
    now = teller.node.picture(teller.node.sequence + 1)
    assert [one.id for one in teller.changes(now).vgpus] == [third.id]
    pool.delete(new.id)
    assert teller.tell().accepted
    assert pool.is_gone(new.id)
    assert (pool.vgpu(old.id).state, pool.vgpu(third.id).state) == (State.READY, State.READY)
    assert teller.wholes == 0
    pool.check()


def test_differences_of_many_nodes_are_taken_together(pool: Pool, teller: Teller) -> None:
    """Each by itself: what one says of another's vGPUs is not believed, and what only a whole
    picture can settle does not hold up the others.
    """
    tenant = pool.tenant()
    others = [Teller(pool, pool.node(f"m{number}")) for number in range(4)]
    every = [teller, *others]
    for one in others:
        one.tell()
    made = {
        one.node.id: pool.create(tenant, one.node.name, selector=Selector(node=one.node.name))
        for one in every
    }
    told = []
    for one in every:
        one.node.sequence += 1
        told.append(one.changes(one.node.picture(one.node.sequence)))
    used = VgpuReport(made[others[0].node.id].id, 25, 1000, memory_used_mib=9)
    told[1] = replace(told[1], vgpus=(used,))
    told[2] = replace(told[2], vgpus=told[3].vgpus)  # silent about its own
    told[4] = replace(told[4], incarnation=9)
    done = pool.store.change(lambda tables: reporting.changes_of(tables, told))
    assert [(one.accepted, one.known, one.whole) for one in done] == [
        *[(True, True, False)] * 2,
        (False, True, True),
        (True, True, False),
        (False, False, False),
    ]
    states = [pool.vgpu(made[one.node.id].id).state for one in every]
    assert states == [State.READY, State.READY, State.PLACED, State.READY, State.PLACED]
    assert pool.vgpu(used.id).memory_used_mib == 9
    node = pool.store.read(lambda tables: tables.nodes.get(teller.node.id))
    assert node is not None
    assert (node.sequence, node.applied_generation) == (told[0].sequence, node.generation)
    again = pool.store.change(lambda tables: reporting.changes_of(tables, told))
    assert [one.accepted for one in again] == [False] * 5
    pool.check()


def test_one_that_was_never_there_is_gone_when_that_is_said(pool: Pool, teller: Teller) -> None:
    """Made and deleted before the node heard of it."""
    made = pool.create(pool.tenant(), "a")
    pool.delete(made.id)
    assert teller.tell().accepted
    assert pool.is_gone(made.id)
    assert teller.wholes == 0


def test_silence_about_what_has_not_settled_is_not_an_answer(pool: Pool, teller: Teller) -> None:
    """A node that passes over a vGPU that it should have, or that goes, is asked for all."""
    tenant = pool.tenant()
    made = pool.create(tenant, "a")
    teller.node.sequence += 1
    now = teller.node.picture(teller.node.sequence)
    assert teller.taken is not None
    silent = Changes(
        now.node_id, now.incarnation, now.sequence, now.applied_generation, teller.taken.sequence
    )
    assert teller.send(silent) == Reported(False, True, now.applied_generation, whole=True)
    assert pool.vgpu(made.id).state is State.PLACED
    # The number was not taken: the whole picture may have it.
    assert teller.node.send(now).accepted
    assert pool.vgpu(made.id).state is State.READY


def test_a_gap_a_repetition_and_an_old_one(pool: Pool, teller: Teller) -> None:
    made = pool.create(pool.tenant(), "a")
    teller.node.sequence += 1
    first = teller.changes(teller.node.picture(teller.node.sequence))
    assert teller.send(first).accepted
    again = teller.send(first)
    assert (again.accepted, again.known, again.whole) == (False, True, False)
    pool.delete(made.id)
    # Its answer was lost: the node still thinks that the one before was the last.
    teller.node.sequence += 1
    gap = teller.changes(teller.node.picture(teller.node.sequence))
    told = teller.send(gap)
    assert (told.accepted, told.whole) == (False, True)
    assert not pool.is_gone(made.id)
    teller.tell()
    assert pool.is_gone(made.id)


def test_a_node_that_was_lost_tells_all(pool: Pool, teller: Teller) -> None:
    beats = pool.store.read(lambda tables: tables.nodes.beats())
    pool.store.change(lambda tables: fleet.lose(tables, teller.node.id, beats[teller.node.id]))
    teller.tell()
    assert teller.wholes == 1
    node = pool.store.read(lambda tables: tables.nodes.get(teller.node.id))
    assert node is not None
    assert node.state.value == "ready"


def test_another_incarnation_is_not_known(teller: Teller) -> None:
    assert teller.taken is not None
    taken = teller.taken
    foreign = Changes(taken.node_id, taken.incarnation + 1, 9, 1, taken.sequence)
    assert teller.send(foreign).known is False


_STEPS = [
    "create",
    "on-demand",
    "claim",
    "release",
    "resize",
    "delete",
    "switch",
    "tell",
    "tell",
    "lost",
]
steps = st.lists(
    st.tuples(
        st.sampled_from(_STEPS),
        st.integers(0, 5),
        st.sampled_from([5, 20, 40]),
    ),
    min_size=8,
    max_size=24,
)


@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(plan=steps)
def test_after_a_difference_the_whole_picture_is_no_news(
    pool: Pool, plan: list[tuple[str, int, int]]
) -> None:
    number = next(_numbers)  # the database is the same for all examples
    tenant = pool.tenant(f"t-{number}")
    teller = Teller(pool, pool.node(f"n-{number}", gpus=2))
    if number % 2:
        teller.beside = Teller(pool, pool.node(f"m-{number}", gpus=0))
        teller.beside.tell()
    names: list[str] = []
    for what, which, percent in plan:
        try:
            _step(pool, teller, names, (tenant, what, which, percent))
        except RefusedError:
            continue
        pool.check()
    teller.tell()
    before = kept(pool)
    teller.node.report()
    assert kept(pool) == before
    pool.check()


def _step(pool: Pool, teller: Teller, ids: list[str], step: tuple[str, str, int, int]) -> None:
    tenant, what, which, percent = step
    node = teller.node
    ids_now = [one for one in ids if not pool.is_gone(one)]
    chosen = ids_now[which % len(ids_now)] if ids_now else ""
    if what in ("create", "on-demand"):
        mode = Mode.ON_DEMAND if what == "on-demand" else Mode.RESERVED
        ids.append(pool.create(tenant, f"v{len(ids)}", percent, 100, mode).id)
    elif what == "tell":
        teller.tell()
    elif what == "lost":  # it arrives, and its answer does not
        if teller.taken is not None:
            node.sequence += 1
            teller.send(teller.changes(node.picture(node.sequence)))
    elif what == "switch":
        gpu = pool.store.read(lambda tables: tables.gpus.of_node(node.id))[which % 2]
        to = GpuPool.NATIVE if percent == 5 else GpuPool.POOLED
        pool.store.change(lambda tables: fleet.switch_pool(tables, gpu, to, None))
    elif what == "release" and node.sessions:
        gone = node.sessions.pop(which % len(node.sessions))
        node.release(gone.id)
    elif chosen and what == "claim":
        session = f"s{next(_numbers)}"
        granted = node.claim(session, chosen, tenant)
        node.sessions.append(SessionReport(session, granted.id, granted.gpu_uuid))
    elif chosen and what == "resize":
        vgpu = pool.vgpu(chosen)
        change = Change(compute_percent=percent)
        pool.store.change(lambda tables: allocation.resize(tables, vgpu, change, pool.licence))
    elif chosen and what == "delete":
        node.sessions = [one for one in node.sessions if one.vgpu_id != chosen]
        pool.delete(chosen)


def test_what_a_node_uses_is_taken_over(pool: Pool, teller: Teller) -> None:
    made = pool.create(pool.tenant(), "a", 10, 500)
    teller.tell()
    teller.tell(vgpus=(VgpuReport(made.id, 10, 500, memory_used_mib=77),))
    assert pool.vgpu(made.id).memory_used_mib == 77
    assert teller.wholes == 0
