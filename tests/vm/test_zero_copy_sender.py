"""tests/cpp/zero_copy_sender.cpp in a guest: memory that only the kernel's notices hold back."""

from __future__ import annotations

import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import native_dir
from tests.vm import network
from tests.vm.kernel import Kernel, MissingError
from tests.vm.machine import Machine, Program

KIB, MIB = 1 << 10, 1 << 20
FRAME = struct.Struct("<IIQQ")  # wire/cpp/stream_frame.hpp
SENDER = native_dir() / "tests" / "cpp" / "zero_copy_sender"
NOTICE_LIMIT_S = 10  # kNoticeLimitMs of wire/cpp/zero_copy.hpp


@dataclass
class Receiver:
    """The host's end of one connection; checks that each round has its own bytes and no others."""

    rounds: int
    reads: bool = True
    wrong: list[int] = field(default_factory=list)
    received: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server((network.HOST, 0))
        if not self.reads:  # the window of a receiver that takes next to nothing
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.settimeout(60)
        self.port = self._listener.getsockname()[1]
        self._release = threading.Event()
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        with self._listener, self._listener.accept()[0] as connection:
            connection.settimeout(60)
            if not self.reads:
                self._release.wait(60)
                return
            with connection.makefile("rb") as stream:
                for number in range(self.rounds):
                    head = stream.read(FRAME.size)
                    if len(head) < FRAME.size:
                        return
                    data = stream.read(FRAME.unpack(head)[3])
                    self.received += 1
                    if data.count(number & 0xFF) != len(data):
                        self.wrong.append(number)

    def end(self) -> None:
        """Waits until it has seen the connection's end."""
        self._release.set()
        self._thread.join(timeout=90)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def guest(guest_kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A guest with a card on a network of its own, on whose host's end the tests are."""
    if not SENDER.exists():
        pytest.skip(f"{SENDER} is missing: ninja cpp_tests")
    try:
        with network.open_network() as net, net.entered():
            folder = Path(tmp_path_factory.mktemp("q", numbered=True))
            machine = Machine(folder, guest_kernel, card=net.card())
            try:
                machine.start()
                machine.wait_ready()
                net.plug_in(machine)
                yield machine
            finally:
                machine.kill()
    except MissingError as problem:
        pytest.skip(str(problem))


def begin(
    guest: Machine, receiver: Receiver, size: int, mode: str = "auto", before: str = "exec"
) -> Program:
    """Starts the sender; `before` are words of a shell, to its exec."""
    words = f"{SENDER} {network.HOST} {receiver.port} {mode} {size} {receiver.rounds}"
    return guest.begin(["/bin/sh", "-c", f"{before} {words}"])


def sent(program: Program, receiver: Receiver) -> dict[str, int]:
    """What it counted, once all has arrived as it was."""
    assert program.wait() == 0, program.err
    receiver.end()
    assert receiver.wrong == []
    assert receiver.received == receiver.rounds
    counted: dict[str, int] = json.loads(program.out)
    return counted


@pytest.mark.parametrize(("size", "rounds"), [(64 * KIB, 400), (256 * KIB, 200), (4 * MIB, 10)])
def test_memory_is_used_again_right_after_its_notice(
    guest: Machine, size: int, rounds: int
) -> None:
    receiver = Receiver(rounds)
    counted = sent(begin(guest, receiver, size), receiver)
    assert counted["bytes"] == size * rounds, counted
    assert (counted["copied_after_all"], counted["refused"]) == (0, 0)


def test_a_receiver_that_takes_nothing_ends_the_wait(guest: Machine) -> None:
    """It neither reads nor acknowledges; whoever says that it has it all the same is not believed
    for longer than the limit.
    """
    receiver = Receiver(1, reads=False)
    began = time.monotonic()
    program = begin(guest, receiver, 64 * KIB)  # more would wait in the send, as without this
    assert program.wait(60) == 1, program.err
    took_s = time.monotonic() - began
    receiver.end()
    assert NOTICE_LIMIT_S - 1 < took_s < 3 * NOTICE_LIMIT_S  # the guest's clock is its own
    assert json.loads(program.out)["bytes"] == 64 * KIB


def test_who_waits_for_such_a_receiver_can_be_ended(guest: Machine) -> None:
    receiver = Receiver(1, reads=False)
    program = begin(guest, receiver, 4 * MIB)
    wait = "until grep -q stream_wait /proc/$(pidof zero_copy_sender)/stack; do sleep 0.1; done"
    assert guest.run(["/bin/sh", "-c", wait], timeout_s=30).code == 0
    program.signal(signal.SIGKILL)
    assert program.wait(20) == -signal.SIGKILL
    receiver.end()


def test_without_room_for_notices_it_copies(guest: Machine) -> None:
    setting = "/proc/sys/net/core/optmem_max"
    before = guest.run(["cat", setting]).out.strip()
    receiver = Receiver(20)
    try:
        program = begin(guest, receiver, 256 * KIB, before=f"echo 1 >{setting} && exec")
        counted = sent(program, receiver)
    finally:
        guest.run(["/bin/sh", "-c", f"echo {before} >{setting}"])
    assert counted["bytes"] == 0
    assert counted["refused"] >= 20


def test_who_may_pin_little_memory_copies(guest: Machine) -> None:
    """RLIMIT_MEMLOCK holds for everybody but who has CAP_IPC_LOCK."""
    receiver = Receiver(20)
    limited = "ulimit -l 64 && exec setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock"
    counted = sent(begin(guest, receiver, 256 * KIB, before=limited), receiver)
    assert counted["bytes"] == 0, counted
    assert counted["refused"] >= 20
