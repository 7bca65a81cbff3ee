"""A real guest whose programs have their data in the window that it shares with its host."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.observe import STEPPER
from tests.tree import ROOT
from tests.vm.house import AGENT, Domain, House, open_house
from tests.vm.kernel import Kernel
from tests.vm.machine import Machine, Program

MIB = 1 << 20
WINDOW_MIB = 128  # two sessions
# Data each way by the staging area, and pinned memory that a kernel adds to.
DATA = """
import ctypes
from tests.e2e.client import *
import os
os.setgroups([]), os.setgid(65534), os.setuid(65534)  # who may not open the device
counter = Counter()
for _ in range(3):
    counter.add()
data = bytes(range(256)) * 40000
block = counter.driver.alloc(len(data))
counter.driver.upload(block, data)
pinned = counter.driver.pinned(4 * counter.COUNT)
ctypes.memset(pinned, 0, 4 * counter.COUNT)
counter.data, before = pinned, counter.data
for _ in range(5):
    counter.add()
counter.driver.call("cuCtxSynchronize")
five = set((c_uint * counter.COUNT).from_address(pinned))
ctypes.memset(pinned, 0x5a, 4 * counter.COUNT)
counter.data = before
print(counter.value(), counter.driver.download(block, len(data)) == data, five, flush=True)
input()
"""


@dataclass
class Guest:
    """One with a window, its agent at work."""

    house: House
    domain: Domain
    machine: Machine
    agent: Program

    def begin(self, text: str, **more: str) -> Program:
        """A program in it."""
        command = [sys.executable, "-c", text]
        return self.machine.begin(command, {"PYTHONPATH": str(ROOT), **more})

    def transports(self) -> list[str]:
        """Of its sessions."""
        return [one["transport"] for one in self.house.host.sessions()]

    def wait_for(self, *transports: str) -> None:
        """Until its sessions are these."""
        self.house.wait(
            lambda: sorted(self.transports()) == sorted(transports), f"sessions {transports}"
        )


@pytest.fixture(scope="module")
def guest(guest_kernel: Kernel) -> Iterator[Guest]:
    with open_house(guest_kernel) as house:
        domain = house.prepare("web", window_mib=WINDOW_MIB)
        machine = house.boot(domain)
        machine.wait_ready()
        unpacked = machine.run(["tar", "-C", "/", "-xzf", str(house.archive)])
        assert unpacked.code == 0, unpacked.err
        agent = machine.begin([AGENT])
        house.wait(
            lambda: "ready: programs see" in agent.err or agent.code is not None, "the agent", 120
        )
        assert agent.code is None, machine.explain(agent.err)
        yield Guest(house, domain, machine, agent)


def test_the_agent_finds_the_device_and_its_probe_uses_it(guest: Guest) -> None:
    assert f"window of {WINDOW_MIB} MiB (/sys/bus/pci/devices/" in guest.agent.err
    assert "resource2_wc) at /run/gpupool-guest/window.sock" in guest.agent.err
    assert "transport=window" in guest.house.host.log
    assert guest.house.shown(guest.domain)["health"]["detail"] == "1 vGPUs"


def test_data_goes_through_the_window(guest: Guest) -> None:
    guest.wait_for()
    window = guest.domain.window
    assert window is not None
    program = guest.begin(DATA, GPUPOOL_TRANSPORT="window", GPUPOOL_LOG="debug")
    assert program.read_line(180) == "3 True {5}", program.err
    assert "connected to vsock://2:9177 over window" in program.err
    assert guest.transports() == ["window"]
    assert bytes([0x5A]) * 4000 in window.read_bytes()
    program.write("\n")
    assert program.wait() == 0, program.err
    guest.wait_for()
    assert window.stat().st_blocks == 0  # nothing is left for the next one


def test_two_programs_and_one_over_vsock(guest: Guest) -> None:
    guest.wait_for()
    programs = [guest.begin(STEPPER) for _ in range(3)]
    for each in programs:
        assert each.read_line(180) == "running", each.err
    guest.wait_for("window", "window", "vsock")
    for turn in ("1", "2", "3"):
        for each in programs:
            each.write("go\n")
        assert [each.read_line() for each in programs] == [turn] * 3
    for each in programs:
        each.signal(9)
    guest.wait_for()


# Medians: microseconds of a small memset and its wait, bytes a microsecond there and back.
SPEED = """
import ctypes, statistics, time
from tests.guest.cuda import Driver
driver = Driver()
lib, size = driver.lib, 8 << 20
block, data, count = driver.alloc(size), bytes(size), ctypes.c_size_t(size)
there = ctypes.c_uint64(block)
here = ctypes.create_string_buffer(size)
def median(call, count):
    took = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        took.append((time.perf_counter() - start) * 1e6)
    return statistics.median(took)
def wait():
    lib.cuMemsetD8Async(there, ctypes.c_ubyte(1), ctypes.c_size_t(4), None)
    lib.cuCtxSynchronize()
up = median(lambda: lib.cuMemcpyHtoD_v2(there, data, count), 9)
down = median(lambda: lib.cuMemcpyDtoH_v2(here, there, count), 9)
print(median(wait, 200), size / up, size / down)
"""


def test_it_is_faster_than_vsock(guest: Guest) -> None:
    guest.wait_for()
    found = {}
    for transport in ("window", "vsock"):
        program = guest.begin(SPEED, GPUPOOL_TRANSPORT=transport)
        assert program.wait(240) == 0, program.err
        found[transport] = [float(word) for word in program.out.split()]
        trip, up, down = found[transport]
        print(f"{transport}: round trip {trip:.0f} us, up {up:.0f} MB/s, down {down:.0f} MB/s")
    assert found["window"][1] > found["vsock"][1]
    assert found["window"][2] > found["vsock"][2]


def test_a_guest_that_is_killed_leaves_nothing(guest: Guest) -> None:
    guest.wait_for()
    program = guest.begin(STEPPER)
    assert program.read_line(180) == "running", program.err
    guest.wait_for("window")
    guest.machine.kill()
    guest.wait_for()
    guest.house.call("vm_release", uuid=guest.domain.uuid)
    assert guest.domain.window is not None
    assert not os.path.lexists(guest.domain.window)
