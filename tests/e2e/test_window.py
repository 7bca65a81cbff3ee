"""Sessions of virtual machines whose ring and data are in the VM's window.

The VM is stood in for (tests/stand_in.py), the window is the file that QEMU would have mapped, and
futexes are not used between client and worker. A real guest: tests/vm/test_window.py.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool.wire.hello import (
    WELCOME_BYTES,
    Hello,
    TransportKind,
    Welcome,
    WelcomeStatus,
)
from tests.conftest import Host, end_host, make_host
from tests.e2e.observe import STEPPER, gone, step, wait_for_line
from tests.stand_in import StandIn

MIB = 1 << 20
SMALL_MIB = 64  # one session fits
# Ten million bytes each way, through the staging area and through pinned memory.
DATA = """
import ctypes
from tests.e2e.client import Counter
counter = Counter()
for _ in range(3):
    counter.add()
data = bytes(range(256)) * 40000
block = counter.driver.alloc(len(data))
counter.driver.upload(block, data)
pinned = counter.driver.pinned(8 << 20)
ctypes.memset(pinned, 0x5a, 8 << 20)
print(counter.value(), counter.driver.download(block, len(data)) == data, flush=True)
input()
"""


class Counting:
    """Between a program and its VM's socket: passes everything on and counts the bytes."""

    def __init__(self, link: Path) -> None:
        """`link`: the program's way to the socket, which is replaced."""
        self.bytes = 0
        self._target = str(link.readlink())
        link.unlink()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(link))
        self._listener.listen(8)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(near,), daemon=True).start()

    def _pass_on(self, near: socket.socket) -> None:
        with near, socket.socket(socket.AF_UNIX) as far:
            far.connect(self._target)
            other = {near: far, far: near}
            while True:
                for one in select.select([near, far], [], [])[0]:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    self.bytes += len(data)
                    other[one].sendall(data)

    def end(self) -> None:
        """No more programs."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class House:
    """Two VMs with a window on one hostd."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.a = StandIn(host.folder, host.native, "web", window_mib=256, compute_percent=40)
        self.b = StandIn(host.folder, host.native, "db", SMALL_MIB, compute_percent=40)
        self._all: list[subprocess.Popen[str]] = []

    def begin(self, one: StandIn, text: str = STEPPER, **more: str) -> subprocess.Popen[str]:
        """A program in that VM; it reads its input."""
        variables = {**one.variables(), **more}
        program = self.host.start_client("vsock", sys.executable, "-c", text, **variables)
        self._all.append(program)
        return program

    def stepper(self, one: StandIn, **more: str) -> subprocess.Popen[str]:
        """One that has its vGPU and answers."""
        program = self.begin(one, **more)
        wait_for_line(program, "running")
        assert step(program) == "1"
        return program

    def transports(self) -> list[str]:
        """Of all sessions, oldest first."""
        return [session["transport"] for session in self.host.sessions()]

    def end(self) -> None:
        """All of it."""
        for program in self._all:
            if program.poll() is None:
                program.kill()
                program.communicate(timeout=60)
        for one in (self.a, self.b):
            one.end()


@pytest.fixture
def house() -> Iterator[House]:
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        host = make_host(Path(name), more='[vm]\nrelay = "no"\n')
        one = House(host)
        yield one
        one.end()
        end_host(host)
        assert not one.a.window.exists()
        assert not one.b.window.exists()


def used_bytes(window: Path) -> int:
    """Of the file's memory."""
    return window.stat().st_blocks * 512


def test_data_goes_through_the_window(house: House) -> None:
    counting = Counting(house.a.ports / "port-9177")
    program = house.begin(house.a, DATA, GPUPOOL_TRANSPORT="window")
    wait_for_line(program, "3 True")
    assert house.transports() == ["window"]
    # A Hello, a Welcome, and bells.
    assert 0 < counting.bytes < 20_000
    assert bytes([0x5A]) * MIB in house.a.window.read_bytes()
    assert house.a.window.stat().st_size == 256 * MIB
    assert used_bytes(house.b.window) == 0
    program.communicate("\n", timeout=60)
    assert program.returncode == 0
    house.host.wait_until(lambda: not house.transports(), "the session to end")
    assert used_bytes(house.a.window) == 0  # nothing is left for the next one
    counting.end()


def test_vsock_alone_when_that_is_asked_for(house: House) -> None:
    house.stepper(house.a, GPUPOOL_TRANSPORT="vsock")
    assert house.transports() == ["vsock"]
    assert used_bytes(house.a.window) == 0


def test_a_full_window_and_its_next_session(house: House) -> None:
    first = house.stepper(house.b)
    second = house.stepper(house.b)
    assert sorted(house.transports()) == ["vsock", "window"]
    assert "over vsock" in house.host.log
    assert "1 sessions have all of it" in house.host.log
    refused = house.begin(house.b, GPUPOOL_TRANSPORT="window")
    _, errors = refused.communicate("", timeout=60)
    assert "transport window was asked for: the host gives" in errors
    assert step(first) == "2"
    first.communicate("", timeout=60)
    house.host.wait_until(lambda: house.transports() == ["vsock"], "the first to end")
    assert used_bytes(house.b.window) == 0
    third = house.stepper(house.b)
    assert sorted(house.transports()) == ["vsock", "window"]
    assert (step(second), step(third)) == ("2", "2")
    _, errors = second.communicate("", timeout=60)
    assert "all data of this program goes through vsock" in errors
    assert errors.count("\n") == 1


def test_several_programs_in_one_window(house: House) -> None:
    programs = [house.stepper(house.a) for _ in range(4)]
    assert house.transports() == ["window"] * 4
    offsets = [session["window_offset"] for session in house.host.sessions()]
    assert sorted(offsets) == [0, 64 * MIB, 128 * MIB, 192 * MIB]
    for turn in range(2, 6):
        assert [step(one) for one in programs] == [str(turn)] * 4


def test_a_vm_reaches_its_own_window_only(house: House) -> None:
    house.stepper(house.a)
    house.stepper(house.b)
    names = {house.a.window.name: house.b.window.name, house.b.window.name: house.a.window.name}
    workers = [session["worker_pid"] for session in house.host.sessions()]
    assert len(workers) == 2
    seen = set()
    for pid in workers:
        maps = Path(f"/proc/{pid}/maps").read_text()
        files = [str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir()]
        (mine,) = [name for name in names if name in maps]
        assert names[mine] not in maps
        assert not any("/dev/shm" in each for each in files)  # noqa: S108
        seen.add(mine)
    assert seen == set(names)


def test_whoever_writes_all_over_its_window_harms_itself(house: House) -> None:
    other = house.stepper(house.b)
    victims = [house.stepper(house.a) for _ in range(2)]
    with house.a.window.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        noise = os.urandom(MIB)
        for start in range(0, len(memory), MIB):
            memory[start : start + MIB] = noise
    for victim in victims:
        assert victim.stdin is not None
        victim.stdin.write("go\n" * 20)
        victim.stdin.flush()
    house.host.wait_until(
        lambda: house.transports() == ["window"] or all(v.poll() is not None for v in victims),
        "their sessions or programs to end",
        60,
    )
    assert step(other) == "2"
    for victim in victims:
        victim.kill()
    house.host.wait_until(lambda: house.transports() == ["window"], "their sessions to end")
    assert step(other) == "3"
    again = house.stepper(house.a)
    assert house.transports() == ["window", "window"]
    assert step(again) == "2"


@pytest.mark.parametrize("claimed_bits", [1, 27, 29, 0xFFFF])
def test_a_window_of_another_size_is_not_used(house: House, claimed_bits: int) -> None:
    hello = Hello(
        transport=TransportKind.VSOCK, window_base=0x2000_0000_0000, window_bits=claimed_bits
    )
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str((house.a.ports / "port-9177").readlink()))
        client.sendall(hello.encode())
        welcome = Welcome.decode(client.recv(WELCOME_BYTES, socket.MSG_WAITALL))
        assert welcome.status is WelcomeStatus.OK
        assert welcome.window_bytes == 1024 * MIB  # one of its own, not a piece
        assert house.transports() == ["vsock"]
    assert f"the guest says that its window has 2^{claimed_bits} bytes" in house.host.log


def test_hostd_restarts_and_knows_who_has_what(house: House) -> None:
    first = house.stepper(house.b)
    house.host.stop()
    assert step(first) == "2"
    house.host.start()
    second = house.stepper(house.b)
    assert sorted(house.transports()) == ["vsock", "window"]
    assert (step(first), step(second)) == ("3", "2")
    house.host.stop()
    first.communicate("", timeout=60)
    house.host.start()
    house.host.wait_until(lambda: house.transports() == ["vsock"], "the first to be forgotten")
    assert used_bytes(house.b.window) == 0
    house.stepper(house.b)
    assert sorted(house.transports()) == ["vsock", "window"]


def test_a_worker_that_dies_is_noticed(house: House) -> None:
    program = house.stepper(house.a)
    house.host.crash_expected = True
    os.kill(house.host.sessions()[0]["worker_pid"], signal.SIGKILL)
    assert program.stdin is not None
    _, errors = program.communicate("go\n", timeout=60)
    assert "the worker on the host is gone" in errors
    assert program.returncode != 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_that_dies_leaves_nothing(house: House, how: int) -> None:
    program = house.stepper(house.a)
    worker = house.host.sessions()[0]["worker_pid"]
    start = time.monotonic()
    program.send_signal(how)
    program.wait(timeout=60)
    house.host.wait_until(lambda: gone(worker) and not house.transports(), "the worker to end")
    assert time.monotonic() - start < 10
    assert used_bytes(house.a.window) == 0


def test_a_missing_window_is_said_and_done_without(house: House) -> None:
    house.a.window.unlink()
    house.stepper(house.a)
    assert house.transports() == ["vsock"]
    assert "No such file or directory" in house.host.log


def test_status_shows_the_transport(house: House) -> None:
    house.stepper(house.a)
    shown = house.host.command("status", "--json").stdout
    (session,) = json.loads(shown)["sessions"]
    assert (session["transport"], session["window_bytes"]) == ("window", 64 * MIB)
    assert " window " in house.host.command("status").stdout


# More pinned memory than a piece has, there and back again; then what only memory in the piece can.
PINNED = """
import ctypes
from ctypes import byref, c_size_t, c_uint, c_uint64, c_void_p
from tests.guest.cuda import Driver
driver = Driver()
call, lib = driver.call, driver.lib
size = 40 << 20
blocks = [driver.pinned(size) for _ in range(3)] + [driver.pinned(1 << 20)]
device = driver.alloc(size)
pattern = bytes(range(256)) * (size // 256)
ctypes.memmove(blocks[0], pattern, size)
call("cuMemcpyHtoDAsync_v2", c_uint64(device), c_void_p(blocks[0]), c_size_t(size), None)
call("cuMemcpyDtoHAsync_v2", c_void_p(blocks[1]), c_uint64(device), c_size_t(size), None)
call("cuCtxSynchronize")
print(ctypes.string_at(blocks[1], size) == pattern)
address = byref(c_uint64())
print([lib.cuMemHostGetDevicePointer_v2(address, c_void_p(each), 0) for each in blocks])
mapped = lib.cuMemHostAlloc(byref(c_void_p()), c_size_t(size), c_uint(2))
print(mapped, [lib.cuMemFreeHost(c_void_p(each)) for each in blocks])
"""


def test_more_pinned_memory_than_a_piece_has(house: House) -> None:
    program = house.begin(house.b, PINNED, GPUPOOL_TRANSPORT="window")
    output, errors = program.communicate("", timeout=120)
    assert program.returncode == 0, errors
    assert output.splitlines() == ["True", "[801, 801, 801, 0]", "2 [0, 0, 0, 0]"]
    assert errors.count("\n") == 1
    assert "pins more memory than its piece" in errors
