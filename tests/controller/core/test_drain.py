"""Nodes that are emptied, and sessions that are ended: by hand, and by a drain's deadline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.controller.core import drain, fleet, session
from gpupool.controller.core.errors import Kind, RefusedError
from gpupool.controller.core.node import Drain, Node, SessionEnd, SessionReport
from gpupool.controller.core.operation import Operation, OperationState
from gpupool.controller.core.vgpu import Mode, State
from gpupool.controller.licence import LicenceFile
from gpupool.controller.sweeper import Keep, Sweeper
from tests.controller.pool import FakeNode, Pool


def the(pool: Pool, node: FakeNode) -> Node:
    """As it is kept."""
    found = pool.store.read(lambda tables: tables.nodes.get(node.id))
    assert found is not None
    return found


def begin(pool: Pool, node: FakeNode, deadline_s: int | None = None) -> Operation:
    return pool.store.change(
        lambda tables: drain.begin(tables, the(pool, node), deadline_s),
    )


def operation(pool: Pool, one: Operation) -> Operation:
    found = pool.store.read(lambda tables: tables.operations.get(one.id))
    assert found is not None
    return found


def desired(pool: Pool, node: FakeNode) -> Any:
    return pool.store.read(lambda tables: fleet.desired(tables, node.id))


def busy(pool: Pool, number: str = "7", mode: Mode = Mode.RESERVED) -> FakeNode:
    """A node with a vGPU and a client on it."""
    node = pool.node()
    vgpu = pool.create(pool.tenant(), "a", mode=mode)
    gpu = node.uuids[0]
    if mode is Mode.ON_DEMAND:
        gpu = node.claim("claim-1", vgpu.id).gpu_uuid
    node.sessions.append(SessionReport(number, vgpu.id, gpu, "python3", 1000))
    node.report()
    return node


def end(pool: Pool, node: FakeNode, number: str = "7") -> Operation:
    return pool.store.change(
        lambda tables: session.end(tables, session.find(tables, f"{node.id}.{number}", None))
    )


def test_a_node_without_clients_is_drained_when_it_says_so(pool: Pool) -> None:
    node = pool.node()
    node.report()
    one = begin(pool, node)
    assert (the(pool, node).drain, the(pool, node).cordoned) == (Drain.DRAINING, True)
    assert desired(pool, node).draining
    stale = node.picture(2, applied_generation=desired(pool, node).generation - 1)
    node.send(stale)
    assert operation(pool, one).state is OperationState.RUNNING, "it may have let one in"
    node.sequence = 2
    node.report()
    assert operation(pool, one).state is OperationState.DONE
    assert the(pool, node).drain is Drain.DRAINED
    acme = pool.tenant()
    with pytest.raises(RefusedError):
        pool.create(acme, "late")
    assert desired(pool, node).draining, "until somebody says otherwise"
    pool.store.change(lambda tables: drain.stop(tables, the(pool, node)))
    assert (the(pool, node).drain, the(pool, node).cordoned) == (Drain.NONE, False)
    assert not desired(pool, node).draining
    pool.create(acme, "again")
    pool.check()


@pytest.mark.parametrize("mode", [Mode.RESERVED, Mode.ON_DEMAND])
def test_clients_are_waited_for(pool: Pool, mode: Mode) -> None:
    node = busy(pool, mode=mode)
    one = begin(pool, node)
    assert begin(pool, node).id == one.id, "said twice, it is one drain"
    node.report()
    assert operation(pool, one).state is OperationState.RUNNING
    assert desired(pool, node).ending == ()
    node.sessions.clear()
    node.report()
    # An on-demand vGPU has left: the node is told so, and answers.
    node.report()
    assert operation(pool, one).state is OperationState.DONE
    pool.check()


def test_a_drain_that_is_given_up(pool: Pool) -> None:
    node = busy(pool)
    one = begin(pool, node)
    pool.store.change(lambda tables: fleet.cancel(tables, operation(pool, one)))
    assert the(pool, node).drain is Drain.NONE
    assert operation(pool, one).state is OperationState.FAILED
    node.report()
    assert not desired(pool, node).draining


def test_a_lost_node_is_not_drained_and_one_that_drains_may_be_lost(pool: Pool) -> None:
    node = busy(pool)
    one = begin(pool, node)
    beats = pool.store.read(lambda tables: tables.nodes.beats())
    pool.store.change(lambda tables: fleet.lose(tables, node.id, beats[node.id]))
    assert operation(pool, one).state is OperationState.RUNNING
    with pytest.raises(RefusedError, match="silent"):
        begin(pool, node)
    node.report()
    assert the(pool, node).drain is Drain.DRAINING, "its client goes on"
    node.sessions.clear()
    node.report()
    assert operation(pool, one).state is OperationState.DONE
    pool.check()


def test_a_removed_node_ends_its_drain(pool: Pool) -> None:
    node = busy(pool)
    one = begin(pool, node)
    beats = pool.store.read(lambda tables: tables.nodes.beats())
    pool.store.change(lambda tables: fleet.lose(tables, node.id, beats[node.id]))
    pool.store.change(lambda tables: fleet.remove(tables, the(pool, node)))
    assert operation(pool, one).state is OperationState.FAILED
    pool.check()


def sweep(pool: Pool) -> None:
    """As another replica would, or this one after a restart."""
    Sweeper(pool.store, LicenceFile(None, "").current, Keep(7, 365, 24), 30).sweep()


def test_after_the_deadline_sessions_are_ended_by_any_replica(pool: Pool) -> None:
    node = busy(pool)
    begin(pool, node, 3600)
    sweep(pool)
    assert desired(pool, node).ending == ()
    one = begin(pool, node, 0)
    sweep(pool)
    wanted = desired(pool, node)
    assert wanted.ending == (SessionEnd("7", 1000),)
    sweep(pool)
    assert desired(pool, node) == wanted, "said once"
    node.report()
    assert operation(pool, one).state is OperationState.RUNNING
    node.sessions.clear()
    node.report()
    assert operation(pool, one).state is OperationState.DONE
    assert desired(pool, node).ending == ()
    pool.check()


_NODE = Node(
    "n", "n", drain=Drain.DRAINING, drain_deadline_s=100, drain_until_ms=1_100_000, heard_ms=0
)


@given(st.lists(st.integers(-(10**10), 10**10), max_size=5))
def test_a_clock_that_jumps_ends_nothing_early(jumps_ms: list[int]) -> None:
    deadlines = drain.Deadlines()
    assert deadlines.look([_NODE], 1_000_000, 50.0) == []
    for step, jump_ms in enumerate(jumps_ms):
        assert deadlines.look([_NODE], 1_000_000 + jump_ms, 60.0 + step) == []
    assert deadlines.look([_NODE], 0, 150.0) == [("n", 1_100_000)]


def test_deadlines_of_another_start() -> None:
    assert drain.Deadlines().look([_NODE], 1_099_000, 7.0) == []
    assert drain.Deadlines().look([_NODE], 1_100_000, 7.0) == [("n", 1_100_000)]
    # A clock that was set back meanwhile makes it at most as long as it was asked for.
    late = drain.Deadlines()
    assert late.look([_NODE], 0, 7.0) == []
    assert late.look([_NODE], 0, 107.0) == [("n", 1_100_000)]
    assert late.look([replace(_NODE, drain_until_ms=None)], 0, 1e9) == []


def test_a_session_is_ended_by_its_node(pool: Pool) -> None:
    node = busy(pool)
    one = end(pool, node)
    assert (one.state, one.subject) == (OperationState.RUNNING, f"{node.id}.7")
    assert end(pool, node).id == one.id
    assert desired(pool, node).ending == (SessionEnd("7", 1000),)
    node.report()
    assert operation(pool, one).state is OperationState.RUNNING, "it is still there"
    node.sessions.clear()
    node.report()
    assert operation(pool, one).state is OperationState.DONE
    with pytest.raises(RefusedError) as refused:
        end(pool, node)
    assert refused.value.kind is Kind.NOT_FOUND


def test_a_session_of_two_vgpus_has_ended_when_both_are_free(pool: Pool) -> None:
    node = busy(pool)
    (vgpu,) = pool.store.read(lambda tables: tables.vgpus.of_node(node.id))
    other = pool.create(vgpu.tenant_id, "b")
    node.sessions.append(SessionReport("7", other.id, node.uuids[0], "python3", 1000))
    node.report()
    one = end(pool, node)
    assert desired(pool, node).ending == (SessionEnd("7", 1000),)
    last = node.sessions.pop()
    node.report()
    assert operation(pool, one).state is OperationState.RUNNING
    assert last.vgpu_id == other.id
    node.sessions.clear()
    node.report()
    assert operation(pool, one).state is OperationState.DONE


def test_a_client_that_is_still_coming_is_not_ended(pool: Pool) -> None:
    node = pool.node()
    vgpu = pool.create(pool.tenant(), "a", mode=Mode.ON_DEMAND)
    node.claim("claim-1", vgpu.id)
    with pytest.raises(RefusedError, match="just beginning"):
        end(pool, node, "claim-1")


def test_what_became_of_a_session_on_a_lost_node_is_not_known(pool: Pool) -> None:
    node = busy(pool)
    one = end(pool, node)
    beats = pool.store.read(lambda tables: tables.nodes.beats())
    pool.store.change(lambda tables: fleet.lose(tables, node.id, beats[node.id]))
    assert operation(pool, one).state is OperationState.FAILED
    node.report()
    assert desired(pool, node).ending == (), "it goes on"


def test_a_deleted_vgpu_ends_what_was_being_ended(pool: Pool) -> None:
    node = busy(pool)
    one = end(pool, node)
    (vgpu,) = pool.store.read(lambda tables: tables.vgpus.of_node(node.id))
    pool.delete(vgpu.id)
    assert pool.vgpu(vgpu.id).state is State.DELETING
    node.sessions.clear()
    node.report()
    assert operation(pool, one).state is OperationState.DONE
