"""gpupool-vsock carries a guest's connections to unix sockets, and the host's to the guest."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostd.vsock_guest import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    DATA,
    REQUEST,
    RESET,
    RESPONSE,
    SHUTDOWN,
    Guest,
    noise,
)
from tests.hostd.vsock_relay import CID, Relay, until

NO_RECEIVE, NO_SEND = 1, 2
BUFFER = 256 << 10  # what the relay says that it holds of one connection


@pytest.fixture
def relay(short_path: Path) -> Iterator[Relay]:
    """One that has started."""
    one = Relay(short_path)
    yield one
    one.close()


@pytest.fixture(params=[True, False], ids=["event-index", "flags"])
def guest(relay: Relay, request: pytest.FixtureRequest) -> Guest:
    """One that has booted."""
    return relay.guest(event_index=request.param)


def test_the_guest_learns_its_cid(relay: Relay) -> None:
    guest = relay.guest()
    answer = guest.vhost.ask(24, struct.pack("<III", 0, 8, 0) + bytes(8))
    assert struct.unpack("<IIIQ", answer) == (0, 8, 0, CID)
    answer = guest.vhost.ask(24, struct.pack("<III", 4, 16, 0) + bytes(16))
    assert answer[12:] == bytes(16)


def test_what_is_sent_comes_back(relay: Relay, guest: Guest) -> None:
    relay.echo(7000)
    ports = guest.open(1025, 7000)
    guest.send(ports, DATA, b"hello")
    assert guest.take(ports, 5) == b"hello"
    data = noise(1, 60000)
    for pieces, indirect in ((1, False), (1, True), (7, False), (60, True), (63, False)):
        guest.send_raw(
            guest.header(ports, DATA, len(data)) + data, pieces=pieces, indirect=indirect
        )
        assert guest.take(ports, len(data)) == data


def test_a_port_where_nobody_listens_is_refused(relay: Relay, guest: Guest) -> None:
    guest.send((1025, 7001), REQUEST)
    guest.expect((1025, 7001), RESET)
    relay.service(7001).close()  # its socket's file is there, but nobody behind it
    guest.send((1025, 7001), REQUEST)
    guest.expect((1025, 7001), RESET)


def test_the_guest_ends_its_half_first(relay: Relay, guest: Guest) -> None:
    listener = relay.service(7000)
    ports = guest.open(1025, 7000)
    taken = relay.accept(listener)
    guest.send(ports, DATA, b"question")
    guest.send(ports, SHUTDOWN, flags=NO_SEND)
    assert taken.recv(100, socket.MSG_WAITALL) == b"question"
    taken.sendall(b"answer")
    assert guest.take(ports, 6) == b"answer"
    taken.close()
    assert guest.expect(ports, SHUTDOWN).flags == NO_RECEIVE | NO_SEND
    guest.send(ports, RESET)
    until(lambda: guest.open(1025, 7000), "the same ports again")


def test_the_host_ends_its_half_first(relay: Relay, guest: Guest) -> None:
    listener = relay.service(7000)
    ports = guest.open(1025, 7000)
    taken = relay.accept(listener)
    taken.sendall(b"all of it")
    taken.shutdown(socket.SHUT_WR)
    assert guest.take(ports, 9) == b"all of it"
    assert guest.expect(ports, SHUTDOWN).flags == NO_SEND
    guest.send(ports, DATA, b"thanks")
    guest.send(ports, SHUTDOWN, flags=NO_SEND | NO_RECEIVE)
    guest.expect(ports, RESET)
    assert taken.recv(100, socket.MSG_WAITALL) == b"thanks"


def test_the_guest_resets(relay: Relay, guest: Guest) -> None:
    listener = relay.service(7000)
    ports = guest.open(1025, 7000)
    taken = relay.accept(listener)
    guest.send(ports, RESET)
    assert taken.recv(1) == b""
    guest.send(ports, DATA, b"to nobody")
    guest.expect(ports, RESET)


def test_the_host_goes_with_the_guests_bytes_unread(relay: Relay, guest: Guest) -> None:
    listener = relay.service(7000)
    ports = guest.open(1025, 7000)
    taken = relay.accept(listener)
    guest.send(ports, DATA, b"never read")
    taken.close()
    assert guest.expect(ports, RESET, SHUTDOWN).op in (RESET, SHUTDOWN)
    guest.send(ports, DATA, b"late")
    guest.send(ports, RESET)
    relay.echo(7001)
    assert guest.open(1025, 7001)


def test_sixty_four_connections_at_once(relay: Relay, guest: Guest) -> None:
    relay.echo(7000)
    before = relay.open_files()
    everyone = [(2000 + i, 7000) for i in range(64)]
    for ports in everyone:
        guest.send(ports, REQUEST)
    waiting = set(everyone)
    for packet in guest.packets():
        assert packet.op == RESPONSE
        waiting.remove((packet.target, packet.source))
        if not waiting:
            break
    for ports in everyone:
        guest.send(ports, DATA, f"of {ports[0]}".encode() * 100)
    got = dict.fromkeys(everyone, b"")
    for packet in guest.packets():
        got[packet.target, packet.source] += packet.data
        if all(len(one) == 700 for one in got.values()):
            break
    assert got == {ports: f"of {ports[0]}".encode() * 100 for ports in everyone}
    for ports in everyone:
        guest.send(ports, SHUTDOWN, flags=NO_SEND | NO_RECEIVE)
        guest.poll()
    until(lambda: relay.open_files() <= before, "all sockets to be closed")


def test_too_many_connections_are_refused(relay: Relay) -> None:
    relay.echo(7000)
    guest = relay.guest()
    last = 0
    for i in range(600):
        ports = (2000 + i, 7000)
        guest.send(ports, REQUEST)
        last = guest.expect(ports, RESPONSE, RESET).op
        if last == RESET:
            break
    assert last == RESET
    assert i == 512
    assert "too many connections" in relay.log
    guest.send((2000, 7000), RESET)
    assert guest.open(5000, 7000)


def test_the_guest_gets_no_more_than_it_has_room_for(relay: Relay, guest: Guest) -> None:
    listener = relay.service(7000)
    guest.buffer = 1000
    ports = guest.open(1025, 7000)
    taken = relay.accept(listener)
    data = noise(2, 5000)
    taken.sendall(data)
    got = b""
    for packet in guest.packets(0.5):
        got += packet.data
    assert got == data[:1000]
    guest.forwarded[ports] = 300
    guest.send(ports, CREDIT_UPDATE)
    got += guest.expect(ports, DATA).data
    assert got == data[:1300]
    guest.buffer = 1 << 18
    guest.forwarded[ports] = 1300
    guest.send(ports, CREDIT_UPDATE)
    while len(got) < 5000:
        got += guest.expect(ports, DATA).data
    assert got == data


def test_a_guest_without_room_is_asked_once(relay: Relay) -> None:
    listener = relay.service(7000)
    guest = relay.guest()
    guest.buffer = 0
    ports = guest.open(1025, 7000)
    relay.accept(listener).sendall(b"x")
    asked = 0
    for packet in guest.packets(0.3):
        asked += packet.op == CREDIT_REQUEST
        guest.send(ports, CREDIT_UPDATE)  # "none", each time
    assert asked == 1
    guest.buffer = 10
    guest.send(ports, CREDIT_UPDATE)
    assert guest.take(ports, 1) == b"x"


def test_a_host_that_does_not_read_stops_the_guest_by_credit(relay: Relay, guest: Guest) -> None:
    listener = relay.service(7000)
    relay.echo(7001)
    ports = guest.open(1025, 7000)
    taken = relay.accept(listener)
    data = noise(3, 4 << 20)
    sent = forwarded = 0

    def learn() -> None:
        nonlocal forwarded
        guest.poll()
        for packet in guest.inbox:
            if (packet.target, packet.source) == ports:
                forwarded = max(forwarded, packet.forwarded)
        guest.inbox.clear()

    def fill() -> None:
        nonlocal sent
        learn()
        while sent < len(data) and (room := min(60000, BUFFER - (sent - forwarded))) > 0:
            guest.send(ports, DATA, data[sent : sent + room])
            sent += min(room, len(data) - sent)
            learn()

    fill()
    assert sent < len(data)  # it holds its buffer and the socket's, and no more
    other = guest.open(1026, 7001)  # the others are not held up
    guest.send(other, DATA, b"alive")
    assert guest.take(other, 5) == b"alive"
    got = b""
    while len(got) < len(data):
        got += taken.recv(1 << 20)
        fill()
    assert got == data


def test_a_guest_beyond_its_credit_loses_that_connection(relay: Relay) -> None:
    relay.service(7000)
    guest = relay.guest()
    ports = guest.open(1025, 7000)
    for _ in range(40):
        guest.send(ports, DATA, bytes(60000))
        guest.poll()
        if any(packet.op == RESET for packet in guest.inbox):
            break
    else:
        raise AssertionError("the relay took it all")
    assert "beyond its credit" in relay.log


def test_bytes_that_wait_reach_the_host_after_the_guest_has_gone(relay: Relay) -> None:
    listener = relay.service(7000)
    guest = relay.guest()
    ports = guest.open(1025, 7000)
    taken = relay.accept(listener)
    data = noise(4, BUFFER)
    for at in range(0, BUFFER, 1 << 15):
        guest.send(ports, DATA, data[at : at + (1 << 15)])
    guest.send(ports, SHUTDOWN, flags=NO_SEND | NO_RECEIVE)
    guest.expect(ports, RESET)
    second = guest.open(1025, 7000)  # the same ports, while the first's bytes wait
    guest.send(second, DATA, b"of the second")
    got = b""
    while more := taken.recv(1 << 20):
        got += more
    assert got == data
    assert relay.accept(listener).recv(100) == b"of the second"


def test_the_host_calls_the_guest(relay: Relay, guest: Guest) -> None:
    caller = relay.call(b"CONNECT 5000\nearly")
    packet = next(guest.packets())
    assert (packet.op, packet.target) == (REQUEST, 5000)
    ports = (5000, packet.source)
    guest.send(ports, RESPONSE)
    assert caller.recv(100) == f"OK {packet.source}\n".encode()
    assert guest.take(ports, 5) == b"early"
    guest.send(ports, DATA, b"answer")
    assert caller.recv(100) == b"answer"
    caller.close()
    assert guest.expect(ports, SHUTDOWN).flags == NO_SEND | NO_RECEIVE


def test_a_port_of_the_guests_where_nobody_listens(relay: Relay) -> None:
    guest = relay.guest()
    caller = relay.call(b"CONNECT 5001\n")
    guest.send((5001, next(guest.packets()).source), RESET)
    assert caller.recv(100) == b""


@pytest.mark.parametrize(
    "line", [b"CONNECT\n", b"CONNECT 5x\n", b"CONNECT 99999999999\n", b"\n", b"C" * 40]
)
def test_a_line_that_is_none(relay: Relay, line: bytes) -> None:
    relay.guest()
    caller = relay.call(line)
    with contextlib.suppress(ConnectionResetError):  # it did not read all of it
        assert caller.recv(100) == b""


def test_a_line_in_two_parts(relay: Relay) -> None:
    guest = relay.guest()
    caller = relay.call(b"CONNECT 50")
    assert not list(guest.packets(0.1))
    caller.sendall(b"00\n")
    packet = next(guest.packets())
    assert (packet.op, packet.target) == (REQUEST, 5000)


def test_without_a_guest_a_caller_is_sent_away(relay: Relay) -> None:
    assert relay.call(b"CONNECT 5000\n").recv(100) == b""


def status_of(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)


def test_it_is_locked_in(relay: Relay) -> None:
    # It listens a moment before; what is said to it is read afterwards.
    until(lambda: status_of(relay.process.pid)["Seccomp"] == "2", "the filter of system calls")
    fields = status_of(relay.process.pid)
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["CapEff"], 16) == 0
    assert (relay.folder / "vhost").stat().st_mode & 0o777 == 0o660
    assert (relay.folder / "vsock").stat().st_mode & 0o777 == 0o600
