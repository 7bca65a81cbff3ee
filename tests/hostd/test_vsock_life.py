"""gpupool-vsock lives through its VM's reboots, hostd's end, and what a guest may do to it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hostd.vsock_guest import (
    CREDIT_UPDATE,
    DATA,
    EVENTS,
    FROM_GUEST,
    INDIRECT,
    NEXT,
    REQUEST,
    RESET,
    RESPONSE,
    TO_GUEST,
    WRITE,
    Guest,
    VhostUser,
)
from tests.hostd.vsock_relay import CID, Relay, until

_EXIT_ANOTHER, _EXIT_MEMORY = 10, 12  # hostd/vsock/main.cpp


@pytest.fixture
def relay(short_path: Path) -> Iterator[Relay]:
    """One with a service that echoes."""
    one = Relay(short_path)
    one.echo(7000)
    yield one
    one.close()


def works(guest: Guest, port: int = 1100) -> None:
    """Fails unless a new connection echoes."""
    ports = guest.open(port, 7000)
    guest.send(ports, DATA, b"alive")
    assert guest.take(ports, 5) == b"alive"


def test_a_vm_that_reboots(relay: Relay) -> None:
    listener = relay.service(7001)
    guest = relay.guest()
    guest.open(1025, 7001)
    taken = relay.accept(listener)
    guest.send((1025, 7001), DATA, b"x")
    assert taken.recv(10) == b"x"
    guest.stop()
    guest.boot()
    guest.start([0, 0, 0])
    assert taken.recv(10) == b""
    works(guest, 1025)


def test_a_vm_that_is_paused_keeps_its_connections(relay: Relay) -> None:
    listener = relay.service(7001)
    guest = relay.guest()
    ports = guest.open(1025, 7001)
    taken = relay.accept(listener)
    guest.send(ports, DATA, b"before")
    guest.poll()
    places = guest.stop()
    assert places[FROM_GUEST] == guest.offered[FROM_GUEST]
    taken.sendall(b"meanwhile")
    guest.start(places)
    assert guest.take(ports, 9) == b"meanwhile"
    guest.send(ports, DATA, b"after")
    assert taken.recv(100) == b"beforeafter"


def test_qemu_comes_and_goes(relay: Relay) -> None:
    files = relay.open_files()
    for _ in range(5):
        guest = relay.guest()
        works(guest)
        guest.leave()
        until(lambda: relay.open_files() == files, "QEMU's descriptors to be closed")
    assert relay.process.poll() is None


def test_a_second_qemu_is_refused(relay: Relay) -> None:
    guest = relay.guest()
    second = VhostUser(relay.folder / "vhost")
    with contextlib.suppress(ConnectionResetError):
        assert second.socket.recv(1) == b""
    second.socket.close()
    assert "a second QEMU is refused" in relay.log
    works(guest)


def test_a_relay_that_was_killed_and_another_for_the_same_guest(relay: Relay) -> None:
    guest = relay.guest()
    works(guest)
    relay.process.send_signal(signal.SIGKILL)
    relay.process.wait()
    guest.leave()
    relay.start()
    guest.inbox.clear()
    guest.connect(anew=False)
    guest.kick(EVENTS)
    guest.wait_used(EVENTS)  # it tells the guest that the old connections are gone
    place = (EVENTS << 16) + 0x2000 + 4
    assert struct.unpack("<II", guest.memory[place : place + 8]) == (0, 4)
    guest.send((1100, 7000), DATA, b"to the old one")
    guest.expect((1100, 7000), RESET)
    works(guest, 1101)


def test_it_outlives_hostd_until_qemu_has_gone(relay: Relay) -> None:
    guest = relay.guest()
    relay.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    works(guest)
    guest.leave()
    assert relay.process.wait(20) == 0


def test_it_ends_when_it_is_told_and_there_is_no_qemu(relay: Relay) -> None:
    relay.process.send_signal(signal.SIGTERM)
    assert relay.process.wait(20) == 0


def test_it_ends_with_its_folder(relay: Relay) -> None:
    guest = relay.guest()
    shutil.rmtree(relay.folder)
    guest.send((1025, 7000), REQUEST)
    guest.expect((1025, 7000), RESET)
    assert relay.process.poll() is None
    guest.leave()
    assert relay.process.wait(20) == 0


def test_there_is_one_for_a_vm(relay: Relay) -> None:
    assert relay.run().wait(20) == _EXIT_ANOTHER
    works(relay.guest())


@pytest.mark.parametrize("words", [["--cid", "2"], ["--cid", "4294967295"], ["--folder", "vm"]])
def test_words_that_cannot_be(relay: Relay, words: list[str]) -> None:
    assert relay.run(*words).wait(20) == 64


def ahead(guest: Guest) -> None:
    guest.write_index(FROM_GUEST, guest.offered[FROM_GUEST] + 100)


def loop(guest: Guest) -> None:
    guest.describe(FROM_GUEST, 0, guest.at(FROM_GUEST, 0x8000), 8, NEXT, 0)
    guest.offer(FROM_GUEST, 0)


def beyond_the_table(guest: Guest) -> None:
    guest.offer(FROM_GUEST, 64)


def outside_memory(guest: Guest) -> None:
    guest.describe(FROM_GUEST, 0, 1 << 40, 44, 0, 0)
    guest.offer(FROM_GUEST, 0)


def around_the_end(guest: Guest) -> None:
    guest.describe(FROM_GUEST, 0, (1 << 64) - 8, 100, 0, 0)
    guest.offer(FROM_GUEST, 0)


def half_outside(guest: Guest) -> None:
    guest.describe(FROM_GUEST, 0, (1 << 32) + (4 << 20) - 20, 44, 0, 0)
    guest.offer(FROM_GUEST, 0)


def nested_table(guest: Guest) -> None:
    table = guest.at(FROM_GUEST, 0x8000)
    guest.describe(FROM_GUEST, 0, table, 32, INDIRECT, 0)
    inner = (FROM_GUEST << 16) + 0x8000
    guest.memory[inner : inner + 16] = struct.pack("<QIHH", table, 32, INDIRECT, 0)
    guest.offer(FROM_GUEST, 0)


def odd_table(guest: Guest) -> None:
    guest.describe(FROM_GUEST, 0, guest.at(FROM_GUEST, 0x8000), 33, INDIRECT, 0)
    guest.offer(FROM_GUEST, 0)


def short_header(guest: Guest) -> None:
    guest.describe(FROM_GUEST, 0, guest.at(FROM_GUEST, 0x8000), 43, 0, 0)
    guest.offer(FROM_GUEST, 0)


def writable_first(guest: Guest) -> None:
    guest.describe(FROM_GUEST, 0, guest.at(FROM_GUEST, 0x8000), 44, NEXT | WRITE, 1)
    guest.describe(FROM_GUEST, 1, guest.at(FROM_GUEST, 0x8000), 44, 0, 0)
    guest.offer(FROM_GUEST, 0)


def less_than_it_says(guest: Guest) -> None:
    place = (FROM_GUEST << 16) + 0x8000
    guest.memory[place : place + 44] = guest.header((1025, 7000), DATA, 1 << 31)
    guest.describe(FROM_GUEST, 0, guest.at(FROM_GUEST, 0x8000), 44, 0, 0)
    guest.offer(FROM_GUEST, 0)


LIES = [
    ahead,
    loop,
    beyond_the_table,
    outside_memory,
    around_the_end,
    half_outside,
    nested_table,
    odd_table,
    short_header,
    writable_first,
    less_than_it_says,
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_ring_that_lies_ends_the_guests_connections(
    relay: Relay, lie: Callable[[Guest], None]
) -> None:
    listener = relay.service(7001)
    guest = relay.guest()
    guest.open(1025, 7001)
    taken = relay.accept(listener)
    lie(guest)
    guest.kick(FROM_GUEST)
    assert taken.recv(10) == b""
    assert "the guest broke a ring" in relay.log
    guest.stop()
    guest.boot()
    guest.start([0, 0, 0])
    works(guest)


@pytest.mark.parametrize("size", [0, 20, 44])
def test_a_buffer_without_room(relay: Relay, size: int) -> None:
    listener = relay.service(7001)
    guest = relay.guest()
    guest.open(1025, 7001)
    taken = relay.accept(listener)
    for slot in range(32):  # all that we offer are this small from now on
        guest.describe(TO_GUEST, 2 * slot, guest.at(TO_GUEST, 0x8000), size, WRITE, 0)
    taken.sendall(b"x")
    with pytest.raises(ConnectionResetError):  # nobody read the x
        taken.recv(10)
    assert "without room" in relay.log


@pytest.mark.parametrize("lies", [{"cid": 43}, {"host": 3}, {"kind": 2}, {"kind": 77}])
def test_a_packet_of_somebody_else(relay: Relay, lies: dict[str, int]) -> None:
    guest = relay.guest()
    guest.send((1025, 7000), REQUEST, b"", 0, **lies)
    assert [one.op for one in guest.packets(0.1)] == ([RESET] if "kind" in lies else [])
    works(guest)


@pytest.mark.parametrize("op", [0, RESPONSE, REQUEST, 8, 65535])
def test_an_operation_that_does_not_fit_ends_the_connection(relay: Relay, op: int) -> None:
    guest = relay.guest()
    ports = guest.open(1025, 7000)
    guest.send(ports, op)
    guest.expect(ports, RESET)
    works(guest)


def test_a_guest_that_asks_and_never_listens(relay: Relay) -> None:
    guest = relay.guest()
    guest.offered[TO_GUEST] = 0  # it takes back what it offered, but for a few
    header = guest.header((1025, 7009), CREDIT_UPDATE, 0)
    place = (FROM_GUEST << 16) + 0x8000
    guest.memory[place : place + 44] = header
    guest.describe(FROM_GUEST, 0, guest.at(FROM_GUEST, 0x8000), 44, 0, 0)
    end_s = time.monotonic() + 5
    while time.monotonic() < end_s:
        free = 64 - ((guest.offered[FROM_GUEST] - guest.used(FROM_GUEST)) & 0xFFFF)
        if free == 0:
            time.sleep(0.05)
            if guest.used(FROM_GUEST) == (guest.offered[FROM_GUEST] - 64) & 0xFFFF:
                break  # the relay has stopped taking
        for _ in range(free):
            guest.offer(FROM_GUEST, 0)
        guest.kick(FROM_GUEST)
    else:
        raise AssertionError("the relay takes more and more")
    before = cpu_s(relay)
    time.sleep(0.5)
    assert cpu_s(relay) - before < 0.2  # and waits for the guest without turning round and round


def cpu_s(relay: Relay) -> float:
    """Processor time that it has used."""
    fields = Path(f"/proc/{relay.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_stalled_connection_costs_nothing(relay: Relay) -> None:
    listener = relay.service(7001)
    guest = relay.guest()
    guest.buffer = 10
    guest.open(1025, 7001)
    taken = relay.accept(listener)
    taken.sendall(bytes(100000))
    taken.close()  # it has hung up, with bytes that the guest has no room for
    list(guest.packets(0.1))
    before = cpu_s(relay)
    time.sleep(0.5)
    assert cpu_s(relay) - before < 0.2


def test_noise_in_the_rings(relay: Relay) -> None:
    chance = random.Random(5)  # noqa: S311 (the same at each run)
    for _ in range(30):
        guest = relay.guest()
        with contextlib.suppress(AssertionError):
            guest.open(1025, 7000)
        for _ in range(20):
            ring = chance.randrange(3) << 16
            where = ring + chance.choice((0, 0x1000, 0x2000)) + chance.randrange(300)
            guest.memory[where : where + 4] = chance.randbytes(4)
            guest.kick(chance.randrange(3))
        guest.stop()
        guest.leave()
    assert relay.process.poll() is None
    works(relay.guest())


def message(request: int, payload: bytes, flags: int = 1) -> bytes:
    """A message of the vhost-user protocol."""
    return struct.pack("<III", request, flags, len(payload)) + payload


@pytest.mark.parametrize(
    "words",
    [
        struct.pack("<III", 1, 1, 1 << 31),
        message(1, b"", flags=2),
        message(2, struct.pack("<Q", 1 << 63)),
        message(2, b"short"),
        message(5, struct.pack("<II", 8, 0)),
        message(5, struct.pack("<II", 0xFFFFFFFF, 0)),
        message(8, struct.pack("<II", 3, 64)),
        message(9, struct.pack("<II", 0, 0)),
        message(12, struct.pack("<Q", 0)),
        message(12, struct.pack("<Q", 0x100)),
        message(24, struct.pack("<III", 0, 500, 0)),
        message(25, struct.pack("<III", 0, 8, 0) + bytes(8)),
        message(99, bytes(8)),
    ],
)
def test_a_qemu_that_lies_loses_its_connection(relay: Relay, words: bytes) -> None:
    talk = VhostUser(relay.folder / "vhost")
    talk.socket.sendall(words)
    with contextlib.suppress(ConnectionResetError):
        assert talk.socket.recv(100) == b""
    talk.socket.close()
    assert "its connection ends" in relay.log
    works(relay.guest())


@pytest.mark.parametrize(
    "region",
    [
        (0, 1 << 30, 0, 0),  # beyond its file
        (0, 4096, 0, (1 << 64) - 4096),
        ((1 << 64) - 4096, 8192, 0, 0),
        (0, 0, 0, 0),
    ],
)
def test_memory_that_is_not_there(relay: Relay, region: tuple[int, int, int, int]) -> None:
    file = os.memfd_create("short")
    os.ftruncate(file, 1 << 20)
    talk = VhostUser(relay.folder / "vhost")
    talk.tell(5, struct.pack("<II", 1, 0) + struct.pack("<QQQQ", *region), file)
    os.close(file)
    with contextlib.suppress(ConnectionResetError):
        assert talk.socket.recv(100) == b""
    talk.socket.close()
    assert "a memory region" in relay.log


def test_memory_that_is_taken_away_ends_the_relay_with_a_reason(relay: Relay) -> None:
    guest = relay.guest()
    works(guest)
    guest.memory.close()
    os.ftruncate(guest.file, 0)
    guest.kick(FROM_GUEST)
    assert relay.process.wait(20) == _EXIT_MEMORY
    assert "the guest's memory has gone" in relay.log
    guest.memory = type(guest.memory)(-1, 4096)  # for close()


def test_another_cid_is_another_guest(relay: Relay) -> None:
    assert CID != 43
    guest = relay.guest()
    guest.cid = 43
    guest.send((1025, 7000), REQUEST)
    assert not list(guest.packets(0.1))
