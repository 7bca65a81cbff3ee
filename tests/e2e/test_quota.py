"""A vGPU's memory quota beyond one program: sessions that share it, that are killed, that see it
resized while they run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Host
from tests.e2e.observe import wait_for_line
from tests.guest.nvml import ask as ask_nvml

# Answers each line: alloc BYTES, free (the newest), forget (frees it, and asks nothing after it),
# left, total.
CLIENT = """
import sys
from ctypes import *
from tests.guest.cuda import Driver
d = Driver()
held, free, total = [], c_size_t(), c_size_t()
def look():
    d.call("cuMemGetInfo_v2", byref(free), byref(total))
look()
print("ready", flush=True)
for line in sys.stdin:
    verb, *numbers = line.split()
    answer = 0
    if verb == "alloc":
        address = c_uint64()
        answer = d.lib.cuMemAlloc_v2(byref(address), c_size_t(int(numbers[0])))
        if answer == 0:
            held.append(address)
    elif verb in ("free", "forget"):
        answer = d.lib.cuMemFree_v2(held.pop())
    if verb not in ("alloc", "forget"):
        look()
    print({"left": free.value, "total": total.value}.get(verb, answer), flush=True)
"""
MIB = 1 << 20
OUT_OF_MEMORY = 2


class Program:
    """A client that does what it is told."""

    def __init__(self, host: Host, transport: str, **variables: str) -> None:
        self.process = host.start_client(transport, sys.executable, "-c", CLIENT, **variables)
        wait_for_line(self.process, "ready")

    def ask(self, what: str) -> int:
        """The answer to one line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def alloc(self, size: int) -> int:
        """cuMemAlloc's result."""
        return self.ask(f"alloc {size}")

    @property
    def left(self) -> int:
        """What cuMemGetInfo calls free."""
        return self.ask("left")

    def end(self) -> None:
        """Ends it as a program ends."""
        if self.process.poll() is None:
            self.process.communicate(timeout=60)


class Shared:
    """A hostd with a named vGPU of 64 MiB, and programs on it."""

    def __init__(self, host: Host, transport: str) -> None:
        self.host = host
        self.transport = transport
        self.programs: list[Program] = []
        host.command("vgpu", "create", "shared", "--memory", "64")

    def start(self, **variables: str) -> Program:
        """One more program on the vGPU, or with other variables elsewhere."""
        program = Program(self.host, self.transport, **(variables or {"GPUPOOL_VGPU": "shared"}))
        self.programs.append(program)
        return program

    def resize(self, mib: int, check: bool = True) -> int:
        """Gives it another quota; the command's exit code."""
        command = ("vgpu", "resize", "shared", "--memory", str(mib))
        return self.host.command(*command, check=check).returncode


@pytest.fixture
def shared(own_host: Host, transport: str) -> Iterator[Shared]:
    one = Shared(own_host, transport)
    yield one
    for program in one.programs:
        program.end()


def test_two_programs_share_one_quota(shared: Shared) -> None:
    one, two = shared.start(), shared.start()
    assert one.alloc(40 * MIB) == 0
    assert two.left == 24 * MIB
    assert two.ask("total") == 64 * MIB
    assert two.alloc(24 * MIB + 1) == OUT_OF_MEMORY
    assert two.alloc(24 * MIB) == 0
    assert (one.left, two.left) == (0, 0)
    assert one.alloc(512) == OUT_OF_MEMORY
    assert two.ask("free") == 0
    assert one.alloc(24 * MIB) == 0


def test_another_vgpu_is_not_concerned(shared: Shared) -> None:
    one, two = shared.start(), shared.start(GPUPOOL_MEMORY_MIB="32")
    assert one.alloc(64 * MIB) == 0
    assert two.left == 32 * MIB
    assert two.alloc(32 * MIB) == 0
    assert two.alloc(512) == OUT_OF_MEMORY
    three = shared.start(GPUPOOL_TRANSPORT=shared.transport)
    assert three.alloc(300 * MIB) == 0


def test_a_killed_program_gives_everything_back(shared: Shared) -> None:
    stays = shared.start()
    assert stays.alloc(4 * MIB) == 0
    for _ in range(3):
        killed = shared.start()
        assert killed.alloc(60 * MIB) == 0
        assert stays.alloc(512) == OUT_OF_MEMORY
        killed.process.kill()
        killed.process.communicate(timeout=60)
        shared.host.wait_until(lambda: len(shared.host.sessions()) == 1, "its session to end")
        assert stays.left == 60 * MIB


def test_a_killed_worker_gives_everything_back(shared: Shared) -> None:
    stays, loses = shared.start(), shared.start()
    assert loses.alloc(60 * MIB) == 0
    session = max(shared.host.sessions(), key=lambda one: int(one["id"]))
    shared.host.command("session", "end", "--kill", str(session["id"]))
    shared.host.wait_until(lambda: len(shared.host.sessions()) == 1, "its session to end")
    assert stays.alloc(64 * MIB) == 0
    loses.process.kill()


def test_resized_while_programs_run(shared: Shared) -> None:
    one, two = shared.start(), shared.start()
    assert one.alloc(48 * MIB) == 0
    assert shared.resize(128) == 0
    assert two.left == 80 * MIB
    assert two.alloc(80 * MIB) == 0
    assert two.alloc(512) == OUT_OF_MEMORY
    assert two.ask("free") == 0
    assert shared.resize(49) == 0
    assert two.alloc(MIB + 1) == OUT_OF_MEMORY
    assert two.alloc(MIB) == 0
    assert two.left == 0
    assert shared.resize(48, check=False) != 0  # 49 are in use
    assert one.alloc(512) == OUT_OF_MEMORY
    assert shared.resize(0) == 0  # not limited
    assert one.alloc(300 * MIB) == 0
    assert one.ask("total") > 1 << 30


def test_kept_memory_counts_and_comes_back(shared: Shared) -> None:
    """What a client has freed and keeps is missing to others until it asks something, not to it."""
    keeps, other = shared.start(), shared.start()
    assert keeps.alloc(48 * MIB) == 0
    assert keeps.ask("forget") == 0
    assert other.alloc(17 * MIB) == OUT_OF_MEMORY
    assert other.alloc(16 * MIB) == 0
    assert keeps.alloc(47 * MIB) == 0  # another size: the block that is kept goes first
    assert keeps.ask("free") == 0
    assert other.alloc(48 * MIB) == 0


def gpu_memory(shared: Shared) -> Any:
    """Total, free and used, as NVML tells a program that has the vGPU and no session."""
    gpu = ask_nvml(shared.host, shared.transport, GPUPOOL_VGPU="shared")["gpus"][0]
    return gpu["memory"]


def test_nvml_tells_the_quota_and_the_use_of_all_sessions(shared: Shared) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is missing")
    one, two = shared.start(), shared.start()
    assert one.alloc(10 * MIB) == 0
    assert two.alloc(20 * MIB) == 0
    assert gpu_memory(shared) == [64 * MIB, 34 * MIB, 30 * MIB]
    assert shared.resize(96) == 0
    assert gpu_memory(shared) == [96 * MIB, 66 * MIB, 30 * MIB]


def test_a_restarted_hostd_knows_what_is_used(shared: Shared) -> None:
    one = shared.start()
    assert one.alloc(40 * MIB) == 0
    shared.host.stop()
    shared.host.start()
    two = shared.start()
    assert two.left == 24 * MIB
    assert two.alloc(25 * MIB) == OUT_OF_MEMORY
    assert one.alloc(24 * MIB) == 0
    assert two.alloc(512) == OUT_OF_MEMORY
