"""The table of sessions, with a machine that exists only in the test."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from gpupool.hostd.core.admission import Door, Limits, Refusal
from gpupool.hostd.core.gpu import Inventory
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.peer import Peer
from gpupool.hostd.core.session import Session, SessionState
from gpupool.hostd.core.start import Ports
from gpupool.wire.hello import Hello, TransportKind, WelcomeStatus
from tests.fakes.clients import FakeClients
from tests.fakes.clock import FakeClock
from tests.fakes.exchanges import FakeExchange
from tests.fakes.gpus import FakeGpus
from tests.fakes.sessions import FakeSessions
from tests.fakes.vgpu_pages import FakePages
from tests.fakes.vgpu_store import FakeVgpus
from tests.fakes.windows import FakeVmWindows, FakeWindows
from tests.fakes.workers import FakeWorkers

LIMITS = Limits(max_sessions=2, window_mib=64, default_compute_percent=0, default_memory_mib=0)
DOOR = Door("unix:/x", frozenset({TransportKind.SHM, TransportKind.TCP}), b"")
HELLO = Hello(window_base=0x2000_0000_0000, pid=5, program="python3", client_version="0.1.0")
PEER = Peer(pid=41, uid=1000, pidfd=12)


@dataclass
class Machine:
    """The fakes, kept when hostd restarts."""

    workers: FakeWorkers = field(default_factory=FakeWorkers)
    store: FakeSessions = field(default_factory=FakeSessions)
    windows: FakeWindows = field(default_factory=FakeWindows)
    clock: FakeClock = field(default_factory=FakeClock)
    exchange: FakeExchange = field(default_factory=FakeExchange)
    clients: FakeClients = field(default_factory=FakeClients)
    pages: FakePages = field(default_factory=FakePages)
    vgpus: FakeVgpus = field(default_factory=FakeVgpus)
    vm_windows: FakeVmWindows = field(default_factory=FakeVmWindows)
    limits: Limits = LIMITS
    inventory: Inventory = FakeGpus.from_file("h100x8.json").inventory

    def host(self) -> Host:
        """A hostd, as after a start."""
        ports = Ports(
            self.workers,
            self.store,
            self.windows,
            self.clock,
            self.exchange,
            self.clients,
            self.pages,
            self.vgpus,
            self.vm_windows,
        )
        return Host(ports, self.limits, self.inventory)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def opened(host: Host, hello: Hello = HELLO) -> Session:
    """A session that was let in."""
    answer = host.open(hello, PEER, DOOR, 7)
    assert isinstance(answer, Session)
    return answer


def test_a_client_gets_a_worker(machine: Machine) -> None:
    host = machine.host()
    session = opened(host)
    order = machine.workers.orders[0]
    assert (order.socket_fd, order.client_pidfd, order.transport) == (7, 12, "shm")
    assert order.window_bytes == 64 << 20
    assert order.library == "/usr/lib/x86_64-linux-gnu/libcuda.so.1"
    assert len(order.devices) == 8
    assert order.usage_fd == 8001
    assert not machine.store.open_usages  # the worker has its own
    assert session.pid == 41  # what the kernel says, not what the client says
    assert session.state is SessionState.RUNNING
    assert host.sessions == (session,)
    assert machine.store.records[session.id] == session


def test_hostd_keeps_no_window(machine: Machine) -> None:
    opened(machine.host())
    assert machine.windows.made == 1
    assert machine.windows.open == {}


def test_a_stream_has_no_window(machine: Machine) -> None:
    opened(machine.host(), replace(HELLO, transport=TransportKind.TCP))
    assert machine.windows.made == 0
    assert machine.workers.orders[0].window_fd is None


def test_the_record_is_there_before_the_worker(machine: Machine) -> None:
    opened(machine.host())
    assert [record.state for record in machine.store.history] == [
        SessionState.STARTING,
        SessionState.RUNNING,
    ]


def test_a_worker_that_does_not_start(machine: Machine) -> None:
    machine.workers.fail_start = "no such file"
    host = machine.host()
    answer = host.open(HELLO, PEER, DOOR, 7)
    assert isinstance(answer, Refusal)
    assert answer.status is WelcomeStatus.WORKER
    assert "no such file" in answer.text
    assert host.sessions == ()
    assert machine.store.records == {}
    assert machine.windows.open == {}


def test_a_worker_that_cannot_be_watched_is_killed(machine: Machine) -> None:
    machine.workers.fail_watch = "too many open files"
    host = machine.host()
    answer = host.open(HELLO, PEER, DOOR, 7)
    assert isinstance(answer, Refusal)
    assert [kill for _, kill in machine.workers.stopped] == [True]
    assert host.sessions == ()
    assert machine.store.records == {}


def test_a_full_disk_refuses_the_client(machine: Machine) -> None:
    machine.store.fail_save_after = 0
    answer = machine.host().open(HELLO, PEER, DOOR, 7)
    assert isinstance(answer, Refusal)
    assert machine.workers.orders == []


def test_a_disk_that_fills_up_later_ends_nothing(machine: Machine) -> None:
    machine.store.fail_save_after = 1
    host = machine.host()
    assert opened(host).state is SessionState.RUNNING
    assert len(host.sessions) == 1


def test_an_ended_worker_leaves_nothing(machine: Machine) -> None:
    host = machine.host()
    session = opened(host)
    machine.workers.end(session.id)
    assert host.sessions == ()
    assert machine.store.records == {}


def test_the_limit_counts_only_the_living(machine: Machine) -> None:
    host = machine.host()
    first = opened(host)
    opened(host)
    assert isinstance(host.open(HELLO, PEER, DOOR, 7), Refusal)
    machine.workers.end(first.id, exit_code=-9)
    opened(host)


def test_ids_are_never_used_twice(machine: Machine) -> None:
    host = machine.host()
    first = opened(host)
    machine.workers.end(first.id)
    assert opened(host).id != first.id


def test_sessions_outlive_hostd(machine: Machine) -> None:
    session = opened(machine.host())
    successor = machine.host()
    assert successor.adopt() == 1
    assert successor.sessions == (session,)
    machine.workers.end(session.id, exit_code=None)
    assert len(successor.sessions) == 0
    assert machine.store.records == {}


def test_workers_that_ended_meanwhile_are_forgotten(machine: Machine) -> None:
    session = opened(machine.host())
    machine.workers.end(session.id)
    machine.store.records[session.id] = session  # nobody was there to remove it
    successor = machine.host()
    assert successor.adopt() == 0
    assert machine.store.records == {}


def test_hostd_that_died_between_record_and_worker(machine: Machine) -> None:
    session = opened(machine.host())
    machine.store.records[session.id] = machine.store.history[0]  # STARTING, no pid
    successor = machine.host()
    assert successor.adopt() == 1
    assert successor.sessions[0].worker_pid == session.worker_pid
    assert machine.store.records[session.id].state is SessionState.RUNNING


def test_hostd_that_died_before_there_was_a_worker(machine: Machine) -> None:
    session = opened(machine.host())
    del machine.workers.running[session.id]
    machine.store.records[session.id] = machine.store.history[0]
    assert machine.host().adopt() == 0
    assert machine.store.records == {}


def test_ending_a_session(machine: Machine) -> None:
    host = machine.host()
    session = opened(host)
    assert host.end(session.id)
    assert host.sessions[0].state is SessionState.ENDING
    assert host.end(session.id, kill=True)
    assert [kill for _, kill in machine.workers.stopped] == [False, True]
    machine.workers.end(session.id, exit_code=-9)
    assert not host.end(session.id)


def test_changes_are_told(machine: Machine) -> None:
    host = machine.host()
    changes: list[int] = []
    host.on_change.append(lambda: changes.append(len(host.sessions)))
    session = opened(host)
    machine.workers.end(session.id)
    assert changes == [1, 0]


def test_sessions_of_one_user_at_one_endpoint_are_one_tenant(machine: Machine) -> None:
    """They may share memory; another user, or the same one at another endpoint, may not."""
    host = machine.host()
    tenants = []
    for peer, door in (
        (PEER, DOOR),
        (PEER, DOOR),
        (Peer(pid=42, uid=1001), DOOR),
        (Peer(address="10.0.0.1:5"), DOOR),
        (Peer(address="10.0.0.2:5"), DOOR),
        (PEER, Door("unix:/y", DOOR.transports, b"")),
    ):
        session = host.open(HELLO, peer, door, 7)
        assert isinstance(session, Session)
        tenants.append(machine.exchange.tenants[session.id])
        machine.workers.end(session.id)
    assert tenants[0] == tenants[1]
    assert len(set(tenants)) == 5
    assert machine.exchange.tenants == {}
    assert machine.exchange.open == set()
    assert [order.exchange_fd is not None for order in machine.workers.orders] == [True] * 6


def test_a_worker_that_does_not_start_leaves_the_exchange(machine: Machine) -> None:
    machine.workers.fail_start = "no"
    assert isinstance(machine.host().open(HELLO, PEER, DOOR, 7), Refusal)
    assert machine.exchange.tenants == {}
    assert machine.exchange.open == set()


def test_a_worker_that_outlives_its_client_is_killed(machine: Machine) -> None:
    host = machine.host()
    session = opened(host)
    machine.clients.leave(session.id)
    machine.clock.pass_time(LIMITS.end_grace_s - 1)
    assert machine.workers.stopped == []
    machine.clock.pass_time(1)
    assert [kill for _, kill in machine.workers.stopped] == [True]


def test_a_worker_that_ends_with_its_client_is_not_killed(machine: Machine) -> None:
    host = machine.host()
    session = opened(host)
    machine.clients.leave(session.id)
    machine.workers.end(session.id)
    machine.clock.pass_time(60)
    assert machine.workers.stopped == []


def test_a_later_hostd_watches_the_clients_too(machine: Machine) -> None:
    session = opened(machine.host())
    before = machine.clients.watched.pop(session.id)[0]
    successor = machine.host()
    successor.adopt()
    assert machine.clients.watched[session.id][0] == before
    machine.clients.leave(session.id)
    machine.clock.pass_time(60)
    assert [kill for _, kill in machine.workers.stopped] == [True]


def test_the_session_says_how_it_is_locked_in(machine: Machine) -> None:
    session = opened(machine.host())
    assert session.isolation == (f"user {session.tenant_number}",)
    assert session.as_dict()["isolation"] == [f"user {session.tenant_number}"]
