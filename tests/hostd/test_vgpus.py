"""Which vGPU a client gets on which GPU, and what people may do with vGPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupool.hostd.core.admission import Refusal
from gpupool.hostd.core.allocation import NoPlace
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.placement import usable_mib
from gpupool.hostd.core.ports import AccountUse, PortError
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.vgpu import Quota, SharePolicy, Vgpu, VgpuMode
from gpupool.hostd.core.vgpus import VgpuError, Vgpus
from gpupool.hostd.core.waiting_line import Ticket, WaitingLine
from gpupool.wire.hello import Hello
from tests.fakes.gpus import FakeGpus
from tests.hostd.test_host import DOOR, HELLO, LIMITS, PEER, Machine

ALL = FakeGpus.from_file("h100x8.json").inventory
MIB = 1 << 20
USABLE = usable_mib(ALL.gpus[0])
RESERVED = VgpuMode.RESERVED


def machine(gpus: int = 1) -> Machine:
    """One with that many GPUs."""
    limits = replace(LIMITS, max_sessions=1000)
    return Machine(limits=limits, inventory=replace(ALL, gpus=ALL.gpus[:gpus]))


def admin(one: Machine, host: Host) -> Vgpus:
    """What the admin API uses."""
    return Vgpus(host, one.pages, one.vgpus)


def ask(host: Host, percent: int = 0, mib: int = 0, **more: Any) -> Session | Refusal | NoPlace:
    """A client that asks for this."""
    hello = replace(HELLO, compute_percent=percent, memory_mib=mib)
    return host.open(replace(hello, **more), PEER, DOOR, 7)


def got(answer: Session | Refusal | NoPlace) -> Session:
    """It was let in."""
    assert isinstance(answer, Session), answer
    return answer


def text(answer: Session | Refusal | NoPlace) -> str:
    """It was not."""
    assert not isinstance(answer, Session)
    assert len(answer.text.encode()) <= 255, answer.text
    return answer.text


def vgpu(name: str, percent: int = 0, mib: int = 0, mode: VgpuMode = VgpuMode.ON_DEMAND) -> Vgpu:
    """As a request asks for it."""
    return Vgpu(0, Quota(percent, mib), name, mode)


def nothing_left(one: Machine) -> bool:
    """No row, page or lease of anybody."""
    pages = one.pages
    return not (pages.vgpus or pages.sessions or pages.accounts or pages.leases or pages.opened)


def test_a_client_that_asks_for_nothing_has_a_vgpu_on_every_gpu() -> None:
    one = machine(3)
    host = one.host()
    session = got(ask(host))
    assert session.devices == tuple(gpu.uuid for gpu in ALL.gpus[:3])
    order = one.workers.orders[0]
    assert len(order.quota_fds) == len(order.account_fds) == len(order.lease_fds) == 3
    assert (order.vgpu_rows, order.account_rows) == ((0, 0, 0), (0, 0, 0))
    assert one.pages.opened == set()  # the worker has its own
    assert {row.quota for row in one.pages.vgpus.values()} == {Quota(priority=5)}
    assert {row.worker.pid for row in one.pages.sessions.values()} == {session.worker_pid}
    other = got(ask(host))
    assert one.workers.orders[1].vgpu_rows == (1, 1, 1)
    for each in (session, other):
        one.workers.end(each.id)
    assert nothing_left(one)


def test_one_that_asks_is_on_one_gpu_and_never_too_many_are() -> None:
    one = machine(2)
    host = one.host()
    first, second = got(ask(host, 60)), got(ask(host, 60))
    assert {first.devices, second.devices} == {(gpu.uuid,) for gpu in ALL.gpus[:2]}
    refused = ask(host, 60)
    assert isinstance(refused, NoPlace)
    assert refused.may_wait
    assert "60% compute was asked for" in text(refused)
    assert "40%" in text(refused)
    got(ask(host, 40))
    one.workers.end(second.id)
    assert got(ask(host, 60)).devices == second.devices


def test_memory_is_promised_once() -> None:
    one = machine()
    host = one.host()
    got(ask(host, mib=USABLE - 100))
    assert "101 MiB was asked for" in text(ask(host, mib=101))
    got(ask(host, mib=100))
    got(ask(host))  # promised nothing


def test_measured_overhead_is_charged() -> None:
    one = machine()
    host = one.host()
    session = got(ask(host, mib=100))
    one.pages.uses[session.seats[0].vgpu] = AccountUse(50 * MIB, 500 * MIB + 1)
    text(ask(host, mib=USABLE - 600))
    got(ask(host, mib=USABLE - 601))


def test_what_can_never_be_is_refused_at_once() -> None:
    host = machine(2).host()
    for refused in (
        ask(host, mib=USABLE + 1),
        ask(host, policy=1),
        ask(host, 25, policy=2),
        ask(host, 25, vgpu="trainer"),
        ask(host, vgpu="no such name"),
        ask(host, vgpu="trainer"),
    ):
        assert isinstance(refused, Refusal), refused
        assert len(refused.text.encode()) <= 255


def test_policies_reach_the_page() -> None:
    one = machine()
    got(ask(one.host(), 25, policy=1))
    (row,) = one.pages.vgpus.values()
    assert row.quota == Quota(25, policy=SharePolicy.HARD)


def test_reserved_ones_hold_from_their_creation() -> None:
    one = machine()
    host = one.host()
    facts = admin(one, host).create(vgpu("trainer", 70, 1000, RESERVED))
    assert facts.gpu == ALL.gpus[0].uuid
    assert [row.name for row in one.pages.vgpus.values()] == ["trainer"]
    text(ask(host, 31))
    session = got(ask(host, vgpu="trainer"))
    assert (session.compute_percent, session.memory_mib, session.vgpu) == (70, 1000, "trainer")
    one.workers.end(session.id)
    assert "30%" in text(ask(host, 31))  # it still holds
    assert [row.name for row in one.pages.vgpus.values()] == ["trainer"]


def test_on_demand_ones_hold_while_they_are_used() -> None:
    one = machine(2)
    host = one.host()
    admin(one, host).create(vgpu("trainer", 70))
    got(ask(host, 90))
    first = got(ask(host, vgpu="trainer"))
    second = got(ask(host, vgpu="trainer"))
    assert first.devices == second.devices == (ALL.gpus[1].uuid,)
    assert first.seats[0].vgpu == second.seats[0].vgpu
    assert [seat.account_row for seat in (*first.seats, *second.seats)] == [0, 1]
    text(ask(host, 40))
    one.workers.end(first.id)
    text(ask(host, 40))
    one.workers.end(second.id)
    elsewhere = got(ask(host, 40))
    assert elsewhere.devices == first.devices


def test_an_on_demand_one_comes_back_on_another_gpu() -> None:
    one = machine(2)
    host = one.host()
    admin(one, host).create(vgpu("trainer", 70))
    before = got(ask(host, vgpu="trainer"))
    one.workers.end(before.id)
    got(ask(host, 50))  # on the first again
    assert got(ask(host, vgpu="trainer")).devices != before.devices


def test_none_is_placed_on_a_gpu_that_leaves_the_pool() -> None:
    one = machine(2)
    host = one.host()
    leaving, other = ALL.gpus[0], ALL.gpus[1]
    assert admin(one, host).create(vgpu("mine", 30, mode=RESERVED)).gpu == leaving.uuid
    filler = got(ask(host, 80))
    assert filler.devices == (other.uuid,)
    admin(one, host).create(vgpu("trainer", 30))
    running = got(ask(host, vgpu="trainer"))
    program = got(ask(host, 10, vgpu="~key"))
    assert running.devices == program.devices == (leaving.uuid,)
    one.workers.end(filler.id)
    note = f"GPU {leaving.uuid} is draining, to be native (container)"
    host.offer(replace(ALL, gpus=(other,), notes=(note,)))
    assert got(ask(host)).devices == (other.uuid,)
    assert got(ask(host, 20)).devices == (other.uuid,)
    more = [got(ask(host, 10, vgpu="~key")) for _ in range(2)]  # of the same program
    assert {one.devices for one in more} == {(other.uuid,)}
    assert more[0].seats[0].vgpu == more[1].seats[0].vgpu != program.seats[0].vgpu
    for name in ("trainer", "mine"):
        assert text(ask(host, vgpu=name)) == f"vGPU {name} takes no clients: {note}"
    one.workers.end(running.id)
    assert text(ask(host, vgpu="mine"))  # a reserved one stays where it is
    assert got(ask(host, vgpu="trainer")).devices == (other.uuid,)


def test_processes_of_one_program_share_one() -> None:
    one = machine()
    host = one.host()
    sessions = [got(ask(host, 60, vgpu="~k1")) for _ in range(2)]
    assert len({session.seats[0].vgpu for session in sessions}) == 1
    assert isinstance(ask(host, 60, vgpu="~k2"), NoPlace)
    stranger = host.open(
        replace(HELLO, compute_percent=60, vgpu="~k1"), replace(PEER, uid=2), DOOR, 7
    )
    assert isinstance(stranger, NoPlace)  # another tenant's key is another key
    successor = one.host()
    successor.adopt()
    assert got(ask(successor, 60, vgpu="~k1")).seats[0].vgpu == sessions[0].seats[0].vgpu


def test_who_may_use_a_named_one() -> None:
    one = machine()
    host = one.host()
    vgpus = admin(one, host)
    vgpus.create(replace(vgpu("mine"), users=(PEER.uid,)))
    vgpus.create(replace(vgpu("theirs"), users=(PEER.uid + 1,)))
    got(ask(host, vgpu="mine"))
    assert "there is no vGPU 'theirs' here for this user" in text(ask(host, vgpu="theirs"))


def test_names_and_numbers_are_checked() -> None:
    one = machine()
    vgpus = admin(one, one.host())
    vgpus.create(vgpu("trainer"))
    for wrong in (
        vgpu("trainer"),
        vgpu("~key"),
        vgpu("../../etc/passwd"),
        vgpu("a" * 64),
        vgpu(""),
        vgpu("a", 101),
        vgpu("a", mib=USABLE + 1),
        vgpu("a", mib=USABLE + 1, mode=RESERVED),
        replace(vgpu("a"), quota=Quota(policy=SharePolicy.HARD)),
        replace(vgpu("a"), quota=Quota(priority=10)),
        replace(vgpu("a"), gpu=ALL.gpus[0].uuid),
        replace(vgpu("a", mode=RESERVED), gpu="GPU-none"),
    ):
        with pytest.raises(VgpuError):
            vgpus.create(wrong)
    assert list(one.vgpus.records) == ["trainer"]


def test_a_full_disk_makes_no_vgpu() -> None:
    one = machine()
    host = one.host()
    vgpus = admin(one, host)
    one.vgpus.fail = "no space left on device"
    with pytest.raises(PortError):
        vgpus.create(vgpu("trainer", 70, mode=RESERVED))
    assert vgpus.all() == []
    got(ask(host, 100))


def test_a_resize_is_in_the_page_at_once() -> None:
    one = machine()
    host = one.host()
    vgpus = admin(one, host)
    vgpus.create(vgpu("trainer", 50, 1000))
    session = got(ask(host, vgpu="trainer"))
    one.pages.uses[session.seats[0].vgpu] = AccountUse(300 * MIB)
    vgpus.resize("trainer", Quota(80, 300, SharePolicy.HARD))
    (row,) = one.pages.vgpus.values()
    assert row.quota == Quota(80, 300, SharePolicy.HARD)
    assert one.vgpus.records["trainer"].quota == row.quota
    assert host.sessions[0].compute_percent == 80
    assert one.workers.stopped == []
    with pytest.raises(VgpuError, match="300 MiB are in use"):
        vgpus.resize("trainer", Quota(80, 299))
    got(ask(host, 20))
    with pytest.raises(VgpuError, match="1% compute more"):
        vgpus.resize("trainer", Quota(81, 300))
    vgpus.resize("trainer", Quota(80, USABLE))
    with pytest.raises(VgpuError, match="MiB more"):
        vgpus.resize("trainer", Quota(80, USABLE + 1))
    assert one.pages.vgpus[session.devices[0], 0].quota == Quota(80, USABLE)


def test_an_anonymous_one_can_be_resized_and_stays_so_after_a_restart() -> None:
    one = machine()
    host = one.host()
    session = got(ask(host, 50))
    admin(one, host).resize(session.seats[0].vgpu, Quota(90))
    successor = one.host()
    successor.adopt()
    assert successor.sessions[0].compute_percent == 90
    assert "10%" in text(ask(successor, 11))


def test_one_of_several_vgpus_of_a_session_keeps_its_size() -> None:
    """They have one record, which knows one quota."""
    one = machine(2)
    host = one.host()
    session = got(ask(host))
    with pytest.raises(VgpuError, match="has several GPUs"):
        admin(one, host).resize(session.seats[0].vgpu, Quota(50))


def test_a_client_that_names_several_has_as_many_devices() -> None:
    one = machine(2)
    host = one.host()
    vgpus = admin(one, host)
    vgpus.create(vgpu("lent", 30))
    vgpus.create(vgpu("kept", 60, mode=RESERVED))
    kept = next(facts.gpu for facts in vgpus.all() if facts.vgpu.name == "kept")
    vgpus.create(replace(vgpu("beside", 20, mode=RESERVED), gpu=kept))
    session = got(ask(host, vgpu="lent,kept"))
    assert list(session.devices) == [gpu.uuid for gpu in one.inventory.gpus]
    assert set(session.vgpu.split(",")) == {"lent", "kept"}
    by_gpu = {seat.gpu: seat.vgpu for seat in session.seats}
    assert next(f.vgpu.name for f in vgpus.all() if f.vgpu.id == by_gpu[kept]) == "kept"
    for asked, why in (
        ("kept,beside", "kept, beside were asked for; beside is on the GPU of another"),
        ("kept,none", "there is no vGPU 'none'"),
        ("kept,kept", "one of them twice"),
        ("kept,", "vGPU name ''"),
        ("kept,~key", "there is no vGPU '~key'"),
    ):
        assert why in text(ask(host, vgpu=asked))
    assert "a share or memory besides" in text(ask(host, 10, vgpu="kept,lent"))
    assert len(host.sessions) == 1
    # While one of them finds no room, nothing of the others is held.
    vgpus.create(vgpu("large", 90))
    assert len(host.sessions) == 1
    assert isinstance(ask(host, vgpu="large,kept"), NoPlace)
    one.workers.end(session.id)
    assert {facts.vgpu.name for facts in vgpus.all() if facts.gpu} == {"kept", "beside"}
    assert len(got(ask(host, vgpu="large,kept")).seats) == 2


def test_deleting() -> None:
    one = machine()
    host = one.host()
    vgpus = admin(one, host)
    vgpus.create(vgpu("trainer", 50, mode=RESERVED))
    session = got(ask(host, vgpu="trainer"))
    with pytest.raises(VgpuError, match=f"used by session {session.id}"):
        vgpus.delete("trainer")
    with pytest.raises(VgpuError, match="belongs to its sessions"):
        vgpus.delete(got(ask(host)).seats[0].vgpu)
    assert vgpus.delete("trainer", force=True) == (session.id,)
    assert [kill for _, kill in one.workers.stopped] == [False]
    text(ask(host, vgpu="trainer"))
    text(ask(host, 51))  # the session has not ended yet
    vgpus.create(vgpu("trainer", 50, mode=RESERVED))  # another one of that name
    one.workers.end(session.id)
    assert [facts.vgpu.id for facts in vgpus.all() if facts.vgpu.name] == [2]
    vgpus.delete("trainer")
    got(ask(host, 100))


def test_everything_is_found_again() -> None:
    one = machine(2)
    host = one.host()
    vgpus = admin(one, host)
    vgpus.create(vgpu("first", 30, mode=RESERVED))
    vgpus.create(vgpu("second", 60, mode=RESERVED))
    vgpus.create(vgpu("third", 10))
    sessions = [got(ask(host, vgpu=name)) for name in ("second", "third", "third")]
    sessions += [got(ask(host, 5, 100)), got(ask(host))]
    seen = (dict(one.pages.vgpus), dict(one.pages.sessions), dict(one.pages.accounts))
    one.workers.end(sessions[1].id)
    del one.workers.running[sessions[3].id]  # while no hostd was there
    one.store.records[sessions[3].id] = sessions[3]
    successor = one.host()
    successor.adopt()
    assert {session.id for session in successor.sessions} == {
        sessions[index].id for index in (0, 2, 4)
    }
    kept = {session.id for session in successor.sessions}
    assert one.pages.sessions == {at: row for at, row in seen[1].items() if row.session_id in kept}
    assert all(seen[0][at].id == row.id for at, row in one.pages.vgpus.items())
    assert [(one.vgpu.name, len(one.sessions)) for one in admin(one, successor).all()][:3] == [
        ("first", 0),
        ("second", 1),
        ("third", 1),
    ]
    promised = sum(100 - room.compute_percent for room in successor.rooms())
    assert promised == 30 + 60 + 10


def test_a_record_that_promises_too_much_promises_nothing() -> None:
    one = machine()
    gpu = ALL.gpus[0].uuid
    for number, name in ((1, "a"), (2, "b")):
        one.vgpus.records[name] = Vgpu(number, Quota(60), name, RESERVED, (), gpu)
    host = one.host()
    host.adopt()
    assert [facts.gpu for facts in admin(one, host).all()] == [gpu, ""]
    assert "40%" in text(ask(host, 41))


def test_full_pages_refuse() -> None:
    one = machine()
    host = one.host()
    admin(one, host).create(vgpu("shared"))
    for _ in range(128):
        got(ask(host, vgpu="shared"))
    assert "128 sessions of vGPU shared" in text(ask(host, vgpu="shared"))
    for _ in range(255):
        got(ask(host))
    assert "256 vGPUs on GPU" in text(ask(host))
    assert len(one.pages.sessions) == 128 + 255
    assert len(one.store.records) == 128 + 255


def test_first_come_first_served() -> None:
    one = machine()
    host = one.host()
    first = got(ask(host, 80))
    wanted = host.wanted(replace(HELLO, compute_percent=50), PEER, DOOR)
    ticket = Ticket(wanted, "python3", 5, 0.0)
    assert host.line.enter(ticket)
    assert "others wait for room on this host (1)" in text(
        ask(host, 10)
    )  # it would fit, and may not slip past
    got(ask(host))  # who needs no room does not wait
    assert isinstance(host.open(hello_of(50), PEER, DOOR, 7, (), ticket), NoPlace)
    one.workers.end(first.id)
    got(host.open(hello_of(50), PEER, DOOR, 7, (), ticket))
    host.line.leave(ticket)
    got(ask(host, 10))


def hello_of(percent: int) -> Hello:
    """One that asks for this share."""
    return replace(HELLO, compute_percent=percent)


def test_the_line_is_bounded_and_one_owner_cannot_fill_it() -> None:
    line = WaitingLine()
    host = machine().host()
    mine = host.wanted(hello_of(50), PEER, DOOR)
    tickets = [Ticket(mine, "a", 1, 0.0) for _ in range(65)]
    assert [line.enter(ticket) for ticket in tickets] == [True] * 64 + [False]
    for uid in range(3):
        for _ in range(64):
            line.enter(Ticket(replace(mine, owner=str(uid)), "a", 1, 0.0))
    assert len(line.tickets) == 256
    assert not line.enter(Ticket(replace(mine, owner="9"), "a", 1, 0.0))
    line.leave(tickets[0])
    assert line.before(tickets[1]) == 0
    line.leave(tickets[2])
    urgent, late = (Ticket(mine, "a", 1, 0.0, priority) for priority in (9, 1))
    assert line.enter(late)
    assert line.before(late) == 254
    line.leave(late)
    assert line.enter(urgent)
    assert [line.before(one) for one in (urgent, tickets[1])] == [0, 1]
    assert line.enter(Ticket(replace(mine, owner="9"), "a", 1, 0.0))
