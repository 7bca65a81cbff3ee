"""Which tenants have a worker waiting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupool.hostd.core.ahead import Ahead, AheadSettings
from gpupool.hostd.core.gpu import Inventory
from tests.fakes.clock import FakeClock
from tests.fakes.gpus import FakeGpus
from tests.fakes.workers import FakeWorkers

GPUS = FakeGpus.from_file("h100x8.json").inventory


class Machine:
    """Settings and fakes."""

    def __init__(self, settings: AheadSettings = AheadSettings(workers=1)) -> None:  # noqa: B008
        self.workers = FakeWorkers()
        self.clock = FakeClock()
        self.ahead = Ahead(settings, self.workers, self.clock)


def test_none_before_the_first_session() -> None:
    machine = Machine()
    machine.clock.pass_time(1000)
    assert machine.workers.waiting == []


def test_not_while_a_program_starts() -> None:
    machine = Machine()
    machine.ahead.session_started(7, GPUS)
    machine.clock.pass_time(1)
    assert machine.workers.waiting == []
    machine.clock.pass_time(2)
    assert machine.workers.waiting == [7]


def test_at_once_when_a_program_ends() -> None:
    machine = Machine(AheadSettings(workers=2))
    machine.ahead.session_started(7, GPUS)
    machine.ahead.session_ended(7, GPUS)
    assert machine.workers.waiting == [7, 7]
    machine.clock.pass_time(3)
    assert machine.workers.waiting == [7, 7]


def test_until_the_tenant_has_been_away() -> None:
    machine = Machine(AheadSettings(workers=1, keep_s=60))
    machine.ahead.session_ended(7, GPUS)
    machine.clock.pass_time(40)
    machine.ahead.session_ended(8, GPUS)
    machine.clock.pass_time(30)
    assert machine.workers.waiting == [8]
    machine.clock.pass_time(30)
    assert machine.workers.waiting == []


def test_who_comes_again_keeps_it() -> None:
    machine = Machine(AheadSettings(workers=1, keep_s=60))
    machine.ahead.session_ended(7, GPUS)
    machine.clock.pass_time(40)
    machine.ahead.session_started(7, GPUS)
    machine.clock.pass_time(30)
    assert machine.workers.waiting == [7]
    machine.clock.pass_time(31)
    assert machine.workers.waiting == []


def test_no_more_than_the_host_has_room_for() -> None:
    machine = Machine(AheadSettings(workers=2, most=3))
    for tenant in (1, 2, 3):
        machine.ahead.session_ended(tenant, GPUS)
    assert machine.workers.waiting == [1, 1, 2]


@pytest.mark.parametrize(
    ("settings", "inventory"),
    [(AheadSettings(workers=0), GPUS), (AheadSettings(), Inventory((), ""))],
)
def test_none_where_none_can_be_or_are_wanted(
    settings: AheadSettings, inventory: Inventory
) -> None:
    machine = Machine(settings)
    machine.ahead.session_ended(7, inventory)
    assert machine.workers.waiting == []


def test_a_worker_that_cannot_be_started_is_tried_once() -> None:
    machine = Machine(AheadSettings(workers=4))
    machine.workers.fail_start = "no such file"
    machine.ahead.session_ended(7, GPUS)
    assert machine.workers.waiting == []


def test_many_sessions_are_one_appointment() -> None:
    machine = Machine(AheadSettings(workers=1, keep_s=60))
    for _ in range(100):
        machine.ahead.session_ended(7, GPUS)
    assert len(machine.clock.waiting) == 1


def test_they_end_when_other_gpus_are_given_out() -> None:
    machine = Machine(AheadSettings(workers=1))
    machine.ahead.session_ended(7, GPUS)
    machine.ahead.session_ended(8, GPUS)
    machine.ahead.gpus_changed(replace(GPUS, notes=("nothing new",)))
    assert machine.workers.waiting == [7, 8]
    machine.ahead.session_started(7, GPUS)  # others will be started a while after this
    machine.ahead.gpus_changed(replace(GPUS, gpus=GPUS.gpus[1:]))
    assert machine.workers.waiting == []
    machine.clock.pass_time(3)
    assert machine.workers.waiting == [7]
    assert machine.workers.prepared_on[-1] == tuple(gpu.uuid for gpu in GPUS.gpus[1:])


def test_none_for_one_that_is_gone() -> None:
    """A virtual machine that is released, whose sessions end after that."""
    machine = Machine()
    machine.ahead.session_started(7, GPUS)
    machine.ahead.session_ended(7, GPUS)
    assert machine.workers.waiting == [7]
    machine.ahead.session_started(7, GPUS)
    machine.ahead.tenant_gone(7)
    machine.ahead.tenant_gone(8)  # was never here
    machine.ahead.session_ended(7, GPUS)
    machine.clock.pass_time(3)
    assert machine.workers.waiting == []
    machine.ahead.session_started(7, GPUS)  # its next start
    machine.ahead.session_ended(7, GPUS)
    assert machine.workers.waiting == [7]
    machine.ahead.tenant_gone(7)
    machine.clock.pass_time(1000)
    machine.ahead.session_ended(7, GPUS)  # after a long time it is anybody
    assert machine.workers.waiting == [7]
