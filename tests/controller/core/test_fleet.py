"""Nodes come, report, fall silent and come back: nothing is counted twice, nothing is lost."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from gpupool.controller.core import fleet
from gpupool.controller.core.errors import Kind, RefusedError
from gpupool.controller.core.gpu import Gpu, GpuFacts, GpuReport, Pool
from gpupool.controller.core.node import Beat, NodeState, Registered, Registration, SessionReport
from gpupool.controller.core.operation import Operation, OperationState
from gpupool.controller.core.vgpu import Mode, Selector, State
from tests.controller.core.test_allocation import refused
from tests.controller.pool import FakeNode
from tests.controller.pool import Pool as Store


def lose(pool: Store, node: FakeNode) -> bool:
    """As the sweeper does."""
    beat = pool.store.read(lambda tables: tables.nodes.beats())[node.id]
    return pool.store.change(lambda tables: fleet.lose(tables, node.id, beat))


def events(pool: Store) -> list[str]:
    """Kinds of all events."""
    found = pool.store.read(lambda tables: tables.journal.events(0, 1000))
    assert [event.number for event in found] == sorted(event.number for event in found)
    return [event.kind for event in found]


def the_gpu(pool: Store, node: FakeNode) -> Gpu:
    """Its first."""
    return pool.store.read(lambda tables: tables.gpus.of_node(node.id))[0]


def test_a_node_that_registers_again_is_the_same(pool: Store) -> None:
    first = pool.node(gpus=2)
    again = pool.node(gpus=2)
    assert again.id == first.id
    assert again.registered.incarnation == first.registered.incarnation + 1
    assert not first.report().known  # of the incarnation before
    assert again.report().accepted


def test_a_second_machine_does_not_take_the_name_of_one_that_lives(pool: Store) -> None:
    first = pool.node(gpus=2)
    other = Registration("n1", (GpuFacts("GPU-elsewhere", 0, "H100", 80_000),))

    def come(registration: Registration) -> Registered:
        return pool.store.change(lambda tables: fleet.register(tables, registration, pool.licence))

    with pytest.raises(RefusedError, match="Another machine") as caught:
        come(other)
    assert caught.value.kind is Kind.IN_USE
    assert first.report().accepted  # whose name it is notices nothing
    both = (*other.gpus, GpuFacts(first.uuids[0], 1, "H100", 80_000))
    assert come(replace(other, gpus=both)).node_id == first.id  # got a new card
    assert lose(pool, first)
    third = replace(other, gpus=(GpuFacts("GPU-third", 0, "H100", 80_000),))
    assert come(third).node_id == first.id  # its lease is over


def test_a_card_that_is_gone_is_not_given_out(pool: Store) -> None:
    tenant = pool.tenant()
    pool.node(gpus=2)
    pool.node(gpus=1)
    pool.create(tenant, "a", 100)
    with refused(Kind.NO_ROOM):
        pool.create(tenant, "b", 100)
    pool.node(gpus=2)
    pool.create(tenant, "b", 100)
    assert "node.gpu-missing" in events(pool)


def test_desired_state_has_what_was_asked_for(pool: Store) -> None:
    tenant, node = pool.tenant(), pool.node()
    before = pool.store.read(lambda tables: fleet.desired(tables, node.id))
    vgpu = pool.create(tenant, "a", 30, 500)
    after = pool.store.read(lambda tables: fleet.desired(tables, node.id))
    assert after.generation > before.generation
    assert [(one.id, one.share, one.gpu_uuid) for one in after.vgpus] == [
        (vgpu.id, vgpu.share, node.uuids[0])
    ]
    pool.delete(vgpu.id)
    assert not pool.store.read(lambda tables: fleet.desired(tables, node.id)).vgpus
    with pytest.raises(RefusedError):
        pool.store.read(lambda tables: fleet.desired(tables, "node-none"))


def test_duplicate_and_reordered_reports_change_nothing(pool: Store) -> None:
    """Whatever order reports arrive in, the last one sent is what is believed in the end."""
    tenant, node = pool.tenant(), pool.node()
    chance = random.Random(4)  # noqa: S311
    vgpus = [pool.create(tenant, f"v{number}", 10) for number in range(4)]
    pictures = []
    for number, vgpu in enumerate(vgpus):
        pictures.append(node.picture(number + 1))
        pool.delete(vgpu.id)
    pictures.append(node.picture(len(pictures) + 1))
    shuffled = pictures * 3
    chance.shuffle(shuffled)
    accepted = [report.sequence for report in shuffled if node.send(report).accepted]
    assert accepted == sorted(set(accepted))
    assert accepted[-1] == len(pictures)
    assert not pool.store.read(lambda tables: tables.vgpus.of_node(node.id))
    pool.check()


def test_a_node_cannot_free_what_it_was_never_told_of(pool: Store) -> None:
    """A number of a generation that does not exist yet."""
    tenant, node = pool.tenant(), pool.node()
    vgpu = pool.create(tenant, "a", 100)
    node.send(replace(node.picture(1), applied_generation=1 << 40))
    pool.delete(vgpu.id)
    node.send(replace(node.picture(2), applied_generation=1, vgpus=()))
    assert pool.vgpu(vgpu.id).state is State.DELETING


def test_a_silent_node_loses_on_demand_vgpus_and_keeps_reserved_ones(pool: Store) -> None:
    tenant, node, other = pool.tenant(), pool.node("n1"), pool.node("n2")
    here = Selector(node="n1")
    reserved = pool.create(tenant, "reserved", 50, selector=here)
    loose = pool.create(tenant, "loose", 25, mode=Mode.ON_DEMAND)
    node.claim("s1", loose.id)
    assert lose(pool, node)
    assert not lose_again(pool, node)
    assert pool.vgpu(reserved.id).state is State.LOST
    assert pool.vgpu(reserved.id).gpu_id is not None
    assert pool.vgpu(loose.id).state is State.IDLE
    with refused(Kind.NO_ROOM):
        pool.create(tenant, "new", 1, selector=here)
    assert other.claim("s2", loose.id).gpu_uuid == other.uuids[0]
    pool.check()
    # It comes back, its client still runs; the vGPU is another node's now.
    node.sessions = [SessionReport("s1", loose.id, node.uuids[0])]
    node.report()
    assert pool.vgpu(reserved.id).state is State.READY
    assert pool.vgpu(loose.id).node_name == "n2"
    assert not [one for one in node.picture(99).vgpus if one.id == loose.id]
    assert {"node.lost", "vgpu.lost", "node.back", "vgpu.conflict"} <= set(events(pool))
    pool.check()


def lose_again(pool: Store, node: FakeNode) -> bool:
    """Another replica, which saw the same count."""
    return pool.store.change(lambda tables: fleet.lose(tables, node.id, 1))


def test_a_client_that_outlived_the_silence_keeps_its_vgpu(pool: Store) -> None:
    tenant, node = pool.tenant(), pool.node()
    loose = pool.create(tenant, "loose", 25, mode=Mode.ON_DEMAND)
    node.claim("s1", loose.id)
    node.sessions = [SessionReport("s1", loose.id, node.uuids[0])]
    node.report()
    assert lose(pool, node)
    pool.check()
    node.report()
    assert pool.vgpu(loose.id).gpu_uuid == node.uuids[0]
    assert pool.vgpu(loose.id).sessions == 1
    pool.check()


def test_a_beat_in_time_keeps_a_node(pool: Store) -> None:
    node = pool.node()
    beat = pool.store.read(lambda tables: tables.nodes.beats())[node.id]
    known = pool.store.beat([Beat(node.id, node.registered.incarnation), Beat("node-none", 1)])
    assert known == {node.id}
    assert not pool.store.change(lambda tables: fleet.lose(tables, node.id, beat))
    assert pool.store.beat([Beat(node.id, 99)]) == set()


def test_claims(pool: Store) -> None:
    tenant, node, other = pool.tenant(), pool.node("n1"), pool.node("n2")
    loose = pool.create(tenant, "loose", 60, mode=Mode.ON_DEMAND)
    told = node.claim("s1", "loose", tenant)
    assert node.claim("s1", "loose", tenant) == told  # the answer was lost
    node.claim("s2", loose.id)
    with refused(Kind.IN_USE):
        other.claim("s3", loose.id)
    with refused(Kind.NOT_FOUND):
        node.claim("s4", loose.id, "tenant-other")
    pool.check()
    more = pool.create(tenant, "more", 41, mode=Mode.ON_DEMAND)
    with refused(Kind.NO_ROOM):
        node.claim("s5", more.id)
    node.release("s1")
    node.release("s1")
    assert pool.vgpu(loose.id).state is State.PLACED
    node.release("s2")
    assert pool.vgpu(loose.id).state is State.IDLE
    assert other.claim("s3", loose.id).gpu_uuid == other.uuids[0]
    pool.check()


def test_a_clients_vgpus_go_to_different_gpus_while_there_is_room(pool: Store) -> None:
    tenant, node = pool.tenant(), pool.node("n1", gpus=2)
    one, other, big, last, more = (
        pool.create(tenant, name, percent, mode=Mode.ON_DEMAND)
        for name, percent in (
            ("one", 20),
            ("other", 20),
            ("big", 70),
            ("last", 30),
            ("more", 60),
        )
    )
    first = node.claim("s1", one.id).gpu_uuid
    second = node.claim("s2", other.id, other_gpus=[first]).gpu_uuid
    assert {first, second} == set(node.uuids), "the fullest would have been the first"
    assert node.claim("s3", big.id, other_gpus=[second, "GPU-of-nobody"]).gpu_uuid == first
    assert node.claim("s4", last.id, other_gpus=[second]).gpu_uuid == second, "no other has room"
    with refused(Kind.NO_ROOM):
        node.claim("s5", more.id, other_gpus=node.uuids)
    pool.check()


def test_a_report_made_before_a_claim_does_not_end_it(pool: Store) -> None:
    tenant, node = pool.tenant(), pool.node()
    loose = pool.create(tenant, "loose", 60, mode=Mode.ON_DEMAND)
    node.report()
    late = node.picture(2)  # made, and on its way
    node.sequence = 2
    node.claim("s1", loose.id)
    node.send(late)
    assert pool.vgpu(loose.id).sessions == 1
    node.report()  # made after, and without it: the client is gone
    assert pool.vgpu(loose.id).state is State.IDLE
    pool.check()


def test_what_a_node_gives_out_itself_is_not_given_out_again(pool: Store) -> None:
    tenant, node = pool.tenant(), pool.node(memory_mib=10_000)
    own = GpuReport(
        node.uuids[0], overhead_mib=500, local_compute_percent=30, local_memory_mib=1500
    )
    node.report(gpus=(own,))
    with refused(Kind.NO_ROOM):
        pool.create(tenant, "a", 71)
    with refused(Kind.NO_ROOM):
        pool.create(tenant, "a", 1, 8001)
    pool.create(tenant, "a", 70, 8000)
    pool.check()


@pytest.mark.parametrize("error", ["", "it is busy"])
def test_a_switch_of_pools_ends_when_the_node_says_so(pool: Store, error: str) -> None:
    tenant, node = pool.tenant(), pool.node()
    gpu = the_gpu(pool, node)
    operation = pool.store.change(lambda tables: fleet.switch_pool(tables, gpu, Pool.NATIVE, 60))
    with refused(Kind.NO_ROOM):
        pool.create(tenant, "a")
    wanted = pool.store.read(lambda tables: fleet.desired(tables, node.id)).pools[0]
    assert (wanted.pool, wanted.deadline_s) == (Pool.NATIVE, 60)
    node.report(gpus=(GpuReport(gpu.uuid, Pool.DRAINING),))
    assert the_operation(pool, operation.id).state is OperationState.RUNNING
    told = GpuReport(gpu.uuid, Pool.POOLED if error else Pool.NATIVE, pool_error=error)
    node.report(gpus=(told,))
    ended = the_operation(pool, operation.id)
    assert ended.state is (OperationState.FAILED if error else OperationState.DONE)
    assert ended.message == error


def the_operation(pool: Store, operation_id: str) -> Operation:
    """As it is now."""
    found = pool.store.read(lambda tables: tables.operations.get(operation_id))
    assert found is not None
    return found


def test_only_a_lost_node_is_removed(pool: Store) -> None:
    tenant, node = pool.tenant(), pool.node()
    vgpu = pool.create(tenant, "a")
    found = pool.store.read(lambda tables: tables.nodes.get(node.id))
    assert found is not None
    with refused(Kind.IN_USE):
        pool.store.change(lambda tables: fleet.remove(tables, found))
    assert lose(pool, node)
    picture = node.picture(9)
    pool.store.change(lambda tables: fleet.remove(tables, replace(found, state=NodeState.LOST)))
    assert pool.store.read(lambda tables: tables.vgpus.get(vgpu.id)) is None
    assert not node.send(picture).known
    pool.check()
