"""Guests that end badly or begin anew: nothing of them stays on the host."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.conftest import processes_below
from tests.vm.house import House, open_house
from tests.vm.kernel import Kernel
from tests.vm.test_guest import COUNT, Guest, start


@pytest.fixture
def house(guest_kernel: Kernel) -> Iterator[House]:
    with open_house(guest_kernel) as one:
        yield one


def restarted(guest: Guest) -> None:
    """Its guest is up again, and a program of it has its vGPU as before."""
    guest.machine.wait_ready()
    guest.house.install(guest.machine)
    assert guest.machine.python(COUNT).split() == ["3", "True"]


def test_a_guest_reboots_and_is_killed(house: House) -> None:
    """One guest for both: its boot is what takes time."""
    guest = start(house, "web")
    lost = guest.stepper()
    assert len(house.sessions(guest.domain)) == 1
    guest.machine.qmp("system_reset")
    house.wait(lambda: not house.sessions(guest.domain), "the session of a guest that reboots")
    restarted(guest)
    assert lost.code is None  # it never ended; its machine did
    assert house.shown(guest.domain)["vgpus"]

    guest.stepper()
    relay = house.shown(guest.domain)["relay_pid"]
    guest.machine.kill()
    house.wait(lambda: not house.sessions(guest.domain), "the session of a guest that was killed")
    assert house.shown(guest.domain)["relay_pid"] == relay, house.host.log  # hostd has not said so
    assert house.call("vm_release", uuid=guest.domain.uuid) == {"released": True}
    assert not house.shown(guest.domain)
    house.wait(lambda: not guest.domain.folder.exists(), "the folder to go", 20)
    house.wait(lambda: not processes_below(guest.domain.folder), "the relay to end", 20)
    assert house.call("vgpu_list")["vgpus"] == []


def test_a_release_ends_the_programs_of_a_running_guest(house: House) -> None:
    """As when libvirt loses a domain that still runs: its programs get errors, and end."""
    guest = start(house, "web")
    program = guest.stepper()
    assert house.call("vm_release", uuid=guest.domain.uuid) == {"released": True}
    program.write("go\n")
    assert program.wait(60) != 0
    assert "gpupool: " in program.err
    began = time.monotonic()
    refused = guest.machine.run(["/opt/gpupool-guest/agent", "--once", "--wait", "2"])
    assert refused.code == 69, refused.err
    assert time.monotonic() - began < 60
    with pytest.raises(AssertionError, match="cannot reach vsock://2:9177"):
        guest.machine.python(COUNT)


def test_programs_end_when_the_relay_has_died(house: House) -> None:
    """Nothing resets their connections: the device is gone for this life of the domain."""
    guest = start(house, "web")
    waiting, idle = guest.stepper(), guest.stepper()
    os.kill(house.shown(guest.domain)["relay_pid"], signal.SIGKILL)
    house.wait(lambda: not house.sessions(guest.domain), "the sessions to end", 20)
    waiting.write("go\n")
    assert waiting.wait(120) != 0
    assert "does not answer over vsock any more" in waiting.err
    idle.write("go\n")  # had been told by then
    assert idle.wait(60) != 0
    refused = guest.machine.run(["/opt/gpupool-guest/agent", "--once", "--wait", "0"])
    assert refused.code == 69, refused.err
