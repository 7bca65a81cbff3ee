"""Programs of virtual machines use their VM's vGPU, and no other.

A VM is stood in for by its `vsock_9177`: that is where relays and hypervisors bring what its
programs send. The vsock device is replaced in the client (bench/native/vsock.cpp).
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpupool.cli import admin
from gpupool.hostd.adapters.worker_process import start_ticks
from tests.conftest import Host, end_host, make_host
from tests.e2e.control_plane import Plane, eventually
from tests.e2e.observe import STEPPER, step, wait_for_line

MEMORY_MIB = 256
# How much of its GPU's memory a program sees, and whether it gets more than its vGPU has.
MEMORY = """
import ctypes
from tests.guest.cuda import Driver
driver = Driver()
free, total = ctypes.c_size_t(), ctypes.c_size_t()
driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
address = ctypes.c_uint64()
more = driver.lib.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(300 << 20))
less = driver.lib.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(200 << 20))
print(total.value >> 20, more, less)
"""

# The memory of each of its GPUs.
DEVICES = """
import ctypes
from tests.guest.cuda import Driver
driver = Driver()
count, free, total = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_size_t()
driver.call("cuDeviceGetCount", ctypes.byref(count))
for number in range(count.value):
    context = ctypes.c_void_p()
    driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ctypes.c_int(number))
    driver.call("cuCtxSetCurrent", context)
    driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    print(total.value >> 20)
"""


class Vms:
    """Two VMs on one hostd."""

    def __init__(self, host: Host, device: Path, *, prepared: bool = True) -> None:
        self.host = host
        self.device = device
        self.a, self.b = str(uuid.uuid4()), str(uuid.uuid4())
        self._all: list[subprocess.Popen[str]] = []
        for domain, name in ((self.a, "web"), (self.b, "db")):
            limits = {"compute_percent": 50, "memory_mib": MEMORY_MIB}
            self.call("vm_allow", uuid=domain, tenant="acme", **limits)
            if prepared:
                self.prepare(domain, name)

    def call(self, method: str, **more: Any) -> dict[str, Any]:
        """Asks the admin socket."""
        return admin.call(self.host.folder / "admin.sock", method, **more)

    def prepare(self, domain: str, name: str) -> None:
        """Before its start."""
        vgpu = {"compute_percent": 50, "memory_mib": MEMORY_MIB}
        self.call("vm_prepare", uuid=domain, name=name, vgpus=[vgpu])

    def relay_of(self, domain: str) -> int:
        """The process of its relay; 0: none."""
        return int(self.call("vm_show", uuid=domain)["vm"]["relay_pid"])

    def variables(self, domain: str) -> dict[str, str]:
        """Of a program in it."""
        folder = self.host.folder / domain  # with the name that the stand-in looks for
        folder.mkdir(exist_ok=True)
        if not (folder / "port-9177").is_symlink():
            (folder / "port-9177").symlink_to(self.host.folder / "vms" / domain / "vsock_9177")
        return {
            "LD_PRELOAD": str(self.device),
            "VSOCK_FOLDER": str(folder),
            "GPUPOOL_ENDPOINT": "vsock://2:9177",
        }

    def run(self, domain: str, text: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A program in it, to its end."""
        variables = {**self.variables(domain), **more}
        return self.host.run("vsock", sys.executable, "-c", text, timeout_s=120, **variables)

    def running(self, domain: str) -> subprocess.Popen[str]:
        """A program in it that has its vGPU and answers."""
        variables = self.variables(domain)
        one = self.host.start_client("vsock", sys.executable, "-c", STEPPER, **variables)
        self._all.append(one)
        wait_for_line(one, "running")
        assert step(one) == "1"
        return one

    def end(self) -> None:
        """All of them."""
        for one in self._all:
            if one.poll() is None:
                one.kill()
            with contextlib.suppress(ValueError):  # was waited for
                one.communicate(timeout=60)
        for domain in (self.a, self.b):
            with contextlib.suppress(admin.AdminError):
                self.call("vm_release", uuid=domain)


@pytest.fixture
def vms(device: Path) -> Iterator[Vms]:
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        host = make_host(Path(name), more='[vm]\nrelay = "no"\n')
        one = Vms(host, device)
        yield one
        one.end()
        end_host(host)


def test_a_program_has_its_vms_vgpu_with_its_limits(vms: Vms) -> None:
    done = vms.run(vms.a, MEMORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(MEMORY_MIB), "2", "0"]  # CUDA_ERROR_OUT_OF_MEMORY
    vms.running(vms.a)
    (session,) = vms.host.sessions()
    assert (session["vgpu"], session["compute_percent"]) == ("web", 50)
    assert session["transport"] == "vsock"


def test_two_vms_do_not_see_each_other(vms: Vms) -> None:
    vms.running(vms.a)
    vms.running(vms.b)
    users = {session["isolation"][0] for session in vms.host.sessions()}
    assert len(users) == 2 or "user" not in users.pop()
    owners = {session["owner"] for session in vms.host.sessions()}
    assert owners == {f"vm {vms.a}", f"vm {vms.b}"}
    stolen = vms.run(vms.b, MEMORY, GPUPOOL_VGPU="web")
    assert stolen.returncode != 0
    assert "this virtual machine has no vGPU 'web'; it has db" in stolen.stderr
    greedy = vms.run(vms.b, MEMORY, GPUPOOL_COMPUTE_PERCENT="90")
    assert "its vGPU has its own" in greedy.stderr


def test_release_ends_its_programs_and_no_others(vms: Vms) -> None:
    ends, stays = vms.running(vms.a), vms.running(vms.b)
    vms.call("vm_release", uuid=vms.a)
    assert [session["vgpu"] for session in vms.host.sessions()] == ["db"]
    assert step(stays) == "2"
    ends.communicate("go\n", timeout=60)
    refused = vms.run(vms.a, MEMORY)
    assert refused.returncode != 0
    vms.running(vms.b).communicate("go\n", timeout=60)
    waiting = vms.host.status()["workers_waiting"]
    vms.call("vm_release", uuid=vms.b)  # and no worker waits for its next program
    vms.host.wait_until(lambda: vms.host.status()["workers_waiting"] < max(1, waiting), "their end")
    vms.prepare(vms.a, "web")  # its next start
    vms.running(vms.a)


@pytest.mark.parametrize("kill", [False, True], ids=["SIGTERM", "SIGKILL"])
def test_hostd_restarts_while_a_program_runs(vms: Vms, kill: bool) -> None:
    one = vms.running(vms.a)
    before = vms.call("vm_list")
    process = vms.host.process
    assert process is not None
    process.kill() if kill else process.terminate()
    process.wait(timeout=20)
    assert step(one) == "2"
    vms.host.start()
    assert step(one) == "3"
    assert vms.call("vm_list") == before
    vms.running(vms.a)
    vms.call("vm_release", uuid=vms.a)
    vms.host.wait_until(lambda: not vms.host.sessions(), "both sessions to end")


def test_a_program_has_all_vgpus_of_its_vm(device: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        host = make_host(Path(name), more='[vm]\nrelay = "no"\n', devices=2)
        vms = Vms(host, device)
        vms.call("vm_allow", uuid=vms.a, compute_percent=70, memory_mib=1000, vgpus=2)
        sizes = [{"compute_percent": 30, "memory_mib": size} for size in (128, 192)]
        vms.call("vm_prepare", uuid=vms.a, name="web", vgpus=sizes)
        done = vms.run(vms.a, DEVICES)
        assert sorted(done.stdout.split()) == ["128", "192"], done.stderr
        only = vms.run(vms.a, DEVICES, GPUPOOL_VGPU="web-2")
        assert only.stdout.split() == ["192"], only.stderr
        vms.end()
        end_host(host)


@pytest.mark.softgpu
def test_a_vm_on_a_controllers_node(plane: Plane, device: Path) -> None:
    host = plane.host(plane.folder / "n1")
    if not (host.native / "libexec" / "gpupool-vsock").exists():
        pytest.skip("gpupool-vsock is not built: run ./run build")
    eventually(lambda: plane.node_state("n1") == "ready", "the node")
    vms = Vms(host, device, prepared=False)
    with pytest.raises(admin.AdminError, match="has no reserved vGPU web here"):
        vms.prepare(vms.a, "web")
    vgpu = plane.vgpu("web", 50, MEMORY_MIB)
    eventually(lambda: plane.state(vgpu) == "ready", "the vGPU")
    vms.prepare(vms.a, "web")
    assert vms.run(vms.a, MEMORY).stdout.split() == [str(MEMORY_MIB), "2", "0"]
    vms.running(vms.a)
    eventually(lambda: plane.look(vgpu)["sessions"] == 1, "the session at the controller")
    vms.end()
    assert plane.state(vgpu) == "ready"


def test_a_relay_lives_with_its_vm(device: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        host = make_host(Path(name), more='[vm]\nrelay = "yes"\n')
        if not (host.native / "libexec" / "gpupool-vsock").exists():
            end_host(host)
            pytest.skip("gpupool-vsock is not built: run ./run build")
        vms = Vms(host, device)
        pids = {domain: vms.relay_of(domain) for domain in (vms.a, vms.b)}
        assert all(pids.values())
        vhost = host.folder / "vms" / vms.a / "vhost"
        assert stat.S_IMODE(vhost.stat().st_mode) == 0o660  # there when prepare has answered
        host.stop()
        assert all(start_ticks(pid) for pid in pids.values())
        host.start()
        assert {domain: vms.relay_of(domain) for domain in pids} == pids
        os.kill(pids[vms.a], signal.SIGKILL)
        host.wait_until(lambda: vms.relay_of(vms.a) not in (0, pids[vms.a]), "another relay")
        # One whose VM nobody knows any more, as where state was lost.
        host.stop()
        (host.folder / "state" / "vms" / f"{vms.b}.json").unlink()
        host.start()
        host.wait_until(lambda: not start_ticks(pids[vms.b]), "the relay of no VM to end")
        again = vms.relay_of(vms.a)
        vms.running(vms.a)
        vms.end()
        host.wait_until(lambda: not start_ticks(again), "the relay to end with its VM")
        assert list((host.folder / "vms").iterdir()) == []
        end_host(host)
