"""Switching GPUs between the pools, with a machine that exists only in the test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupool.hostd.core.gpu import Inventory
from gpupool.hostd.core.operation import OperationState
from gpupool.hostd.core.pool import NativeKind, PoolFile, PoolState
from gpupool.hostd.core.pool_ports import Holder
from gpupool.hostd.core.pools import PoolRefusedError
from gpupool.hostd.core.ports import PortError
from tests.fakes.pool_rig import OTHER, UUID, Rig, Running, check_settled

CONTAINER, VFIO = NativeKind.CONTAINER, NativeKind.VFIO
ADDRESS = "0000:1b:00.0"


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def running(rig: Rig) -> Running:
    return rig.start()


def state_of(running: Running, number: int) -> OperationState:
    """Of an operation."""
    return running.pools.operation(number).state


def test_everything_is_pooled_at_first(running: Running) -> None:
    assert len(running.pools.gpus) == len(running.offered()) == 8
    assert check_settled(running) is PoolState.POOLED
    assert running.pools.moves.due_s() is None


@pytest.mark.parametrize("kind", NativeKind)
def test_there_and_back(running: Running, kind: NativeKind) -> None:
    there = running.ask("native", kind)
    assert there.running
    assert UUID not in running.offered()
    running.go()
    assert check_settled(running) is PoolState.NATIVE
    assert state_of(running, there.id) is OperationState.SUCCEEDED
    assert running.rig.users.released == [UUID]
    back = running.ask("pooled")
    running.go()
    assert check_settled(running) is PoolState.POOLED
    assert state_of(running, back.id) is OperationState.SUCCEEDED
    assert [one.percent for one in running.pools.operations] == [100, 100]


def test_it_waits_for_its_sessions_and_others_are_let_alone(running: Running) -> None:
    users = running.rig.users
    users.on = {3: (UUID, OTHER), 4: (OTHER,)}
    number = running.ask("native").id
    running.go(3600)
    operation = running.pools.operation(number)
    assert operation.running
    assert operation.progress == "draining: waits for session 3"
    assert users.told == []
    assert running.pools.moves.due_s() is None  # nothing to do before a session ends
    del users.on[3]
    running.go()
    assert check_settled(running) is PoolState.NATIVE
    assert users.on == {4: (OTHER,)}


def test_sessions_are_ended_after_the_deadline(running: Running) -> None:
    users = running.rig.users
    users.on = {3: (UUID,), 4: (UUID,), 5: (OTHER,)}
    number = running.ask("native", deadline_s=60).id
    running.go(59)
    assert users.told == []
    assert "at most" in running.pools.operation(number).progress
    running.go(2)
    assert users.told == [(3, False), (4, False)]
    del users.on[3]
    running.go(8)
    assert users.told == [(3, False), (4, False)]  # limits.end_grace_s
    running.go(3)
    assert users.told[2:] == [(4, True)]
    assert check_settled(running) is PoolState.NATIVE
    assert users.on == {5: (OTHER,)}


def test_a_deadline_can_be_set_later(running: Running) -> None:
    running.rig.users.on = {3: (UUID,)}
    first = running.ask("native")
    running.go(100)
    assert running.ask("native", deadline_s=0).id == first.id
    running.go(12)
    assert running.rig.users.told == [(3, False), (3, True)]
    assert check_settled(running) is PoolState.NATIVE


def test_a_deadline_survives_hostd(rig: Rig) -> None:
    rig.users.on = {3: (UUID,)}
    rig.start().ask("native", deadline_s=60)
    rig.clock.pass_time(59)
    successor = rig.start()
    successor.go()
    assert rig.users.told == []
    successor.go(2)
    assert rig.users.told == [(3, False)]


def test_a_deadline_of_another_boot_is_not_later(rig: Rig) -> None:
    rig.users.on = {3: (UUID,)}
    rig.clock.now_s = 1e6
    rig.start().ask("native", deadline_s=60)
    rig.clock.now_s = 10.0
    rig.start().go(62)
    assert rig.users.told == [(3, False)]


def test_draining_can_be_cancelled(running: Running) -> None:
    running.rig.users.on = {3: (UUID,)}
    number = running.ask("native", deadline_s=60).id
    running.go(5)
    assert running.pools.cancel(number).state is OperationState.CANCELLED
    assert check_settled(running) is PoolState.POOLED
    running.go(120)
    assert running.rig.users.told == []
    with pytest.raises(PoolRefusedError, match="has ended: cancelled"):
        running.pools.cancel(number)


def test_asking_for_pooled_cancels_draining(running: Running) -> None:
    running.rig.users.on = {3: (UUID,)}
    number = running.ask("native").id
    assert running.ask("pooled").state is OperationState.SUCCEEDED
    assert state_of(running, number) is OperationState.CANCELLED
    assert check_settled(running) is PoolState.POOLED


def test_past_draining_it_is_not_cancelled(running: Running) -> None:
    number = running.ask("native", VFIO).id
    assert running.pools.moves.next_work() is not None
    with pytest.raises(PoolRefusedError, match="past draining"):
        running.pools.cancel(number)
    with pytest.raises(PoolRefusedError, match="on its way to native"):
        running.ask("pooled")
    assert running.ask("native", VFIO).id == number


def test_asking_for_what_is_there(running: Running) -> None:
    assert running.ask("pooled").state is OperationState.SUCCEEDED
    running.ask("native")
    running.go()
    assert running.ask("native").state is OperationState.SUCCEEDED
    with pytest.raises(PoolRefusedError, match="bring it back to the pool first"):
        running.ask("native", VFIO)
    assert check_settled(running) is PoolState.NATIVE


def test_a_gpu_that_does_not_exist(running: Running) -> None:
    with pytest.raises(PoolRefusedError, match="there is no GPU GPU-x; there are: GPU-0"):
        running.ask("native", uuid="GPU-x")
    with pytest.raises(PoolRefusedError, match="there is no operation 9; there are: none"):
        running.pools.operation(9)


def test_reserved_vgpus_keep_their_gpu(running: Running) -> None:
    running.rig.users.names = ("alice", "bob")
    with pytest.raises(PoolRefusedError, match="reserved vGPUs: alice, bob; delete them"):
        running.ask("native")
    assert check_settled(running) is PoolState.POOLED
    running.ask("native", force=True)
    running.go()
    assert check_settled(running) is PoolState.NATIVE


def test_what_holds_the_card_is_told_and_it_is_pooled_again(running: Running) -> None:
    running.rig.pci.held[ADDRESS] = (Holder(812, "nvidia-persistenced", "/dev/nvidia0"),)
    number = running.ask("native", VFIO).id
    running.go()
    assert check_settled(running) is PoolState.POOLED
    operation = running.pools.operation(number)
    assert operation.state is OperationState.FAILED
    assert "nvidia-persistenced (pid 812, /dev/nvidia0)" in operation.error
    assert f"`nvidia-smi -i {UUID} -pm 0`" in operation.error


def test_our_own_workers_that_hold_it_are_named(running: Running) -> None:
    running.rig.users.on = {7: (OTHER,)}
    running.rig.pci.held[ADDRESS] = (Holder(1007, "gpupool-worker", "/dev/nvidia0"),)
    number = running.ask("native", VFIO).id
    running.go()
    assert "the worker of session 7 (pid 1007)" in running.pools.operation(number).error
    assert check_settled(running) is PoolState.POOLED
    running.ask("native", CONTAINER)
    running.go()
    assert check_settled(running) is PoolState.NATIVE
    assert "(7) have its device file open" in running.pools.operations[-1].progress


@pytest.mark.parametrize("where", ["memory", "obstacle", "claim", "cdi"])
def test_a_step_that_fails_brings_it_back(running: Running, where: str) -> None:
    rig = running.rig
    if where == "memory":
        rig.memory.fail = "it is stuck"
    elif where == "obstacle":
        rig.pci.in_the_way = "it is stuck"
    elif where == "claim":
        rig.pci.refuse["claim"] = "it is stuck"
    else:
        rig.cdi.fail = "it is stuck"
    number = running.ask("native", VFIO).id
    running.go()
    assert check_settled(running) is PoolState.POOLED
    operation = running.pools.operation(number)
    assert (operation.state, operation.error) == (OperationState.FAILED, "it is stuck")


def test_a_native_gpu_in_use_stays(running: Running) -> None:
    rig = running.rig
    running.ask("native", VFIO)
    running.go()
    rig.pci.held[ADDRESS] = (Holder(99, "qemu-system-x86", "/dev/vfio/12"),)
    number = running.ask("pooled", force=True).id
    running.go()
    assert check_settled(running) is PoolState.NATIVE
    assert "shut the virtual machine down" in running.pools.operation(number).error
    rig.pci.held.clear()
    running.ask("pooled")
    running.go()
    assert check_settled(running) is PoolState.POOLED


def test_a_container_in_the_way_can_be_overruled(running: Running) -> None:
    running.ask("native")
    running.go()
    running.rig.pci.held[ADDRESS] = (
        Holder(99, "python3", "/dev/nvidia0"),
        Holder(812, "nvidia-persistenced", "/dev/nvidia0"),
    )
    number = running.ask("pooled").id
    running.go()
    error = running.pools.operation(number).error
    assert "python3 (pid 99, /dev/nvidia0); end it first" in error
    assert "persistenced" not in error  # it does nothing on the card
    assert check_settled(running) is PoolState.NATIVE
    running.ask("pooled", force=True)
    running.go()
    assert check_settled(running) is PoolState.POOLED


def test_the_way_back_is_tried_again_until_it_works(running: Running) -> None:
    rig = running.rig
    running.ask("native", VFIO)
    running.go()
    rig.pci.refuse["restore"] = "driver nvidia is not loaded"
    number = running.ask("pooled").id
    running.go(5)
    operation = running.pools.operation(number)
    assert (operation.state, operation.error) == (
        OperationState.FAILED,
        "driver nvidia is not loaded",
    )
    assert running.pools.trouble(UUID) == "driver nvidia is not loaded"
    assert running.gpu().state is PoolState.TO_POOLED
    with pytest.raises(PoolRefusedError, match="bring it back"):
        running.ask("native", CONTAINER)
    rig.pci.refuse.clear()
    running.go(31)
    assert check_settled(running) is PoolState.POOLED
    assert running.pools.trouble(UUID) == ""


def test_the_way_back_can_be_asked_for_again_or_given_up(running: Running) -> None:
    rig = running.rig
    for wanted, state in (("pooled", PoolState.POOLED), ("native", PoolState.NATIVE)):
        running.ask("native", VFIO)
        running.go()
        rig.pci.refuse["restore"] = "driver nvidia is not loaded"
        running.ask("pooled")
        running.go(5)
        rig.pci.refuse.clear()
        again = running.ask(wanted, VFIO)
        running.go()
        assert state_of(running, again.id) is OperationState.SUCCEEDED
        assert check_settled(running) is state
    running.ask("pooled")
    running.go()
    assert check_settled(running) is PoolState.POOLED  # with the drivers from before


def test_what_got_stuck_after_a_failure_succeeds_when_asked_for_again(running: Running) -> None:
    rig = running.rig
    rig.cdi.fail = "no room"  # after both functions were bound to vfio-pci
    rig.pci.refuse["restore"] = "driver nvidia is not loaded"
    first = running.ask("native", VFIO)
    running.go(5)
    error = running.pools.operation(first.id).error
    assert error == "no room; and on the way back: driver nvidia is not loaded"
    rig.pci.refuse.clear()
    again = running.ask("pooled")
    running.go()
    assert check_settled(running) is PoolState.POOLED
    assert state_of(running, again.id) is OperationState.SUCCEEDED


def test_what_never_became_native_comes_back_whoever_has_it_open(running: Running) -> None:
    running.rig.cdi.fail = "no room"
    running.rig.pci.held[ADDRESS] = (Holder(99, "python3", "/dev/nvidia0"),)
    running.ask("native")
    running.go()
    assert check_settled(running) is PoolState.POOLED


def test_a_driver_may_need_a_moment(running: Running) -> None:
    rig = running.rig
    running.ask("native", VFIO)
    running.go()
    number = running.ask("pooled").id
    shown, rig.gpus.inventory = rig.gpus.inventory, Inventory((), "", notes=("no GPU",))
    running.go(6)
    assert running.pools.operation(number).running
    rig.gpus.inventory = shown
    running.go(3)
    assert check_settled(running) is PoolState.POOLED
    assert state_of(running, number) is OperationState.SUCCEEDED


def test_a_driver_that_never_shows_it(running: Running) -> None:
    rig = running.rig
    running.ask("native", VFIO)
    running.go()
    number = running.ask("pooled").id
    rig.gpus.inventory = Inventory((), "", notes=("no GPU",))
    running.go(30)
    operation = running.pools.operation(number)
    assert operation.state is OperationState.FAILED
    assert "does not show GPU" in operation.error


def test_something_of_ours_that_does_not_let_go(running: Running) -> None:
    running.rig.users.busy = True
    number = running.ask("native").id
    running.go(3)
    assert running.pools.operation(number).running
    running.go(200)
    assert "has not left" in running.pools.operation(number).error
    assert check_settled(running) is PoolState.POOLED


def test_a_full_disk_changes_nothing(running: Running) -> None:
    rig = running.rig
    rig.store.fail = "no space left on device"
    with pytest.raises(PortError):
        running.ask("native")
    assert running.gpu().state is PoolState.POOLED
    rig.store.fail = ""
    number = running.ask("native", VFIO).id
    rig.store.fail = "no space left on device"
    running.go(10)
    assert running.gpu().state is PoolState.DRAINING
    assert running.pools.trouble(UUID) == "no space left on device"
    rig.store.fail = ""
    running.go(3)
    assert check_settled(running) is PoolState.NATIVE
    assert state_of(running, number) is OperationState.SUCCEEDED


def test_a_restart_leaves_native_gpus_to_their_users(rig: Rig) -> None:
    first = rig.start()
    first.ask("native", VFIO)
    first.ask("native", CONTAINER, uuid=OTHER)
    first.go()
    rig.pci.held = {
        ADDRESS: (Holder(99, "qemu-system-x86", "/dev/vfio/12"),),
        "0000:2b:00.0": (Holder(100, "python3", "/dev/nvidia1"),),
    }
    rig.cdi.devices.clear()  # as if somebody had cleaned up
    second = rig.start()
    second.go()
    assert set(rig.cdi.devices) == {UUID, OTHER}
    assert check_settled(second) is PoolState.NATIVE
    assert len(second.pools.operations) == 2


def test_a_card_that_somebody_bound_back_is_claimed_again(rig: Rig) -> None:
    first = rig.start()
    first.ask("native", VFIO)
    first.go()
    for address in (ADDRESS, "0000:1b:00.1"):
        before = next(one for one in first.gpu().functions if one.address == address)
        rig.pci.cards[address] = before
    second = rig.start()
    second.go()
    assert check_settled(second) is PoolState.NATIVE


def test_records_survive_as_they_are(rig: Rig) -> None:
    running = rig.start()
    running.ask("native", VFIO, deadline_s=60)
    running.go()
    content = rig.store.load()
    assert PoolFile.from_dict(content.as_dict()) == content
    for wrong in (
        {},
        {**content.as_dict(), "version": 2},
        {**content.as_dict(), "gpus": [{"uuid": "x"}]},
        {**content.as_dict(), "gpus": [{**content.gpus[0].as_dict(), "step": "claim"}]},
        {**content.as_dict(), "operations": [1]},
    ):
        with pytest.raises(ValueError, match=r"version|record|step|operation|file"):
            PoolFile.from_dict(wrong)


def test_old_operations_are_forgotten(running: Running) -> None:
    for _ in range(150):
        running.ask("pooled")
    running.rig.users.on = {3: (UUID,)}
    first = running.ask("native")
    for _ in range(150):
        running.ask("pooled", uuid=OTHER)
    assert len(running.pools.operations) == 101
    assert running.pools.operation(first.id).running
    assert running.pools.operations[-1].id == 301


def test_an_operation_that_has_ended_does_not_change(running: Running) -> None:
    ended = running.ask("pooled")
    assert ended.went_on("x", 1) == ended
    assert ended.failed("x", "y", "z") == replace(ended)
