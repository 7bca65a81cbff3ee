"""OpenGL of a virtual machine that has a window: its bytes go through a slot of that.

The VM is stood in for (tests/stand_in.py); the protocol and its rings are the real ones.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool.hostd.core.window import SLOT_BYTES
from tests.conftest import Host, end_host, make_host
from tests.e2e.observe import gone, wait_for_line
from tests.e2e.test_opengl import CLEAR, needed, run  # noqa: F401  `needed` skips for this file too
from tests.e2e.test_window import MIB, Counting, used_bytes
from tests.stand_in import StandIn

LAST = 192 * MIB  # where the last piece of such a window begins
# More both ways than a ring holds, several times; a line before and after.
MUCH = """
import moderngl, hashlib
context = moderngl.create_context(standalone=True, backend="egl")
frame = context.framebuffer([context.texture((1024, 1024), 4)])
pixels = bytes(range(256)) * (4 * 1024 * 1024 // 256)
for _ in range(3):
    frame.color_attachments[0].write(pixels)
    assert frame.read(components=4) == pixels
print("read", flush=True)
input()
frame.clear(1, 0, 0, 1)
print(set(frame.read(components=4)[1::4]), flush=True)
"""


class Machine:
    """A VM with a window of 256 MiB, on a hostd of its own."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.vm = StandIn(host.folder, host.native, "web", window_mib=256)

    def run(self, text: str, transport: str = "window") -> tuple[int, str, str]:
        """A program in it, to its end."""
        words = run(sys.executable, "-c", text)
        done = self.host.run("vsock", *words, timeout_s=120, **self.vm.variables(transport))
        return done.returncode, done.stdout, done.stderr

    def session(self) -> dict[str, object]:
        """The only one."""
        (one,) = self.host.sessions()
        return one


@pytest.fixture
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        host = make_host(Path(name), more='[vm]\nrelay = "no"\n')
        one = Machine(host)
        yield one
        one.vm.end()
        end_host(host)


def test_bytes_go_through_the_window(machine: Machine) -> None:
    counting = Counting(machine.vm.ports / "port-9177")
    program = machine.host.start_client(
        "vsock", *run(sys.executable, "-c", MUCH), **machine.vm.variables("window")
    )
    wait_for_line(program, "read")
    session = machine.session()
    assert (session["transport"], session["kind"]) == ("window", "opengl")
    assert (session["window_offset"], session["window_bytes"]) == (LAST, SLOT_BYTES)
    output, errors = program.communicate("\n", timeout=60)
    assert (program.returncode, output, errors) == (0, "{0}\n", "")
    # 24 MiB were asked for and read; a Hello, a Welcome and bells went over vsock.
    assert 0 < counting.bytes < 100_000
    machine.host.wait_until(lambda: not machine.host.sessions(), "the session to end")
    assert used_bytes(machine.vm.window) == 0
    counting.end()


def test_vsock_where_that_is_asked_for(machine: Machine) -> None:
    code, output, errors = machine.run(CLEAR, "vsock")
    assert (code, output, errors) == (0, "virgl 12288 {64} {128}\n", "")
    assert used_bytes(machine.vm.window) == 0


def test_without_room_it_goes_by_vsock_and_says_so(machine: Machine) -> None:
    machine.vm.window.unlink()
    code, output, errors = machine.run(CLEAR, "")
    assert (code, output) == (0, "virgl 12288 {64} {128}\n")
    assert "the machine's window has no room left for OpenGL" in errors
    assert "No such file or directory" in machine.host.log
    code, _, errors = machine.run(CLEAR)
    assert code != 0
    assert "transport window was asked for" in errors


# Says something and hears something all the time.
BUSY = """
import moderngl
context = moderngl.create_context(standalone=True, backend="egl")
frame = context.framebuffer([context.texture((64, 64), 4)])
print("read", flush=True)
while True:
    frame.clear(1, 0, 0, 1)
    frame.read(components=4)
"""


# The counters of the ring to the host, written and read, and of the one to the guest.
@pytest.mark.parametrize("at", [0, 64, 128, 192])
@pytest.mark.parametrize("value", [1 << 40, 1 << 63])
def test_counters_that_cannot_be_end_that_session(machine: Machine, at: int, value: int) -> None:
    program = machine.host.start_client(
        "vsock", *run(sys.executable, "-c", BUSY), **machine.vm.variables("window")
    )
    wait_for_line(program, "read")
    renderer = int(str(machine.session()["worker_pid"]))
    with machine.vm.window.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:

        def lie() -> bool:
            # Its owner writes it again: who reads it has to look in between.
            for _ in range(20000):
                memory[LAST + at : LAST + at + 8] = struct.pack("<Q", value)
            return program.poll() is not None

        machine.host.wait_until(lie, "the program to end")
    _, errors = program.communicate(timeout=60)
    assert program.returncode != 0
    machine.host.wait_until(lambda: not machine.host.sessions(), "the session to end")
    assert gone(renderer)
    assert "impossible counters" in machine.host.log or "are impossible" in errors
    assert machine.run(CLEAR) == (0, "virgl 12288 {64} {128}\n", "")


@pytest.mark.parametrize("victim", ["program", "renderer"])
def test_an_end_on_either_side_ends_the_other(machine: Machine, victim: str) -> None:
    program = machine.host.start_client(
        "vsock", *run(sys.executable, "-c", MUCH), **machine.vm.variables("window")
    )
    wait_for_line(program, "read")
    renderer = int(str(machine.session()["worker_pid"]))
    start = time.monotonic()
    machine.host.crash_expected = victim == "renderer"
    client = int(str(machine.session()["pid"]))
    os.kill(renderer if victim == "renderer" else client, signal.SIGKILL)
    program.communicate("\n", timeout=60)
    assert program.returncode != 0
    machine.host.wait_until(lambda: gone(renderer) and not machine.host.sessions(), "both to end")
    assert time.monotonic() - start < 30
    assert used_bytes(machine.vm.window) == 0
