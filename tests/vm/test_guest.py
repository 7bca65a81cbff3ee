"""Programs in a real guest, without GPU and driver, on the vGPU that the host gives the guest."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.observe import STEPPER
from tests.e2e.test_vms import MEMORY
from tests.guest.test_cudart import KERNEL, PRELUDE, RUNTIMES
from tests.tree import ROOT
from tests.vm.house import Domain, House, open_house, seconds_since
from tests.vm.kernel import Kernel
from tests.vm.machine import Machine, Program

COUNT = """
from tests.e2e.client import Counter
counter = Counter()
for _ in range(3):
    counter.add()
data = bytes(range(256)) * 40000
block = counter.driver.alloc(len(data))
counter.driver.upload(block, data)
print(counter.value(), counter.driver.download(block, len(data)) == data)
"""
FIRST_RESULT_S = 60  # from the domain's start, under emulation


@dataclass
class Guest:
    """A guest with the agent's work done, and its host."""

    house: House
    domain: Domain
    machine: Machine
    first_result_s: float
    agent_log: str

    def stepper(self) -> Program:
        """A program that adds one whenever it is told; it has its vGPU and has counted to 1."""
        program = self.machine.begin([sys.executable, "-c", STEPPER], {"PYTHONPATH": str(ROOT)})
        assert program.read_line() == "running", program.err
        assert step(program) == "1"
        return program


def step(program: Program) -> str:
    """The next count."""
    program.write("go\n")
    return program.read_line()


def start(house: House, name: str) -> Guest:
    """From a domain to a program's first result."""
    domain = house.prepare(name)
    began = time.monotonic()
    machine = house.boot(domain)
    machine.wait_ready()
    said = house.install(machine)
    assert machine.python(COUNT).split() == ["3", "True"]
    return Guest(house, domain, machine, seconds_since(began), said)


@pytest.fixture(scope="module")
def house(guest_kernel: Kernel) -> Iterator[House]:
    with open_house(guest_kernel) as one:
        yield one


@pytest.fixture(scope="module")
def guest(house: House) -> Guest:
    """One guest for the tests that leave it as it was."""
    return start(house, "web")


def test_a_program_computes_within_a_minute_of_the_start(guest: Guest) -> None:
    # Whoever else computes here takes his part of the processors.
    share = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    print(f"first result after {guest.first_result_s:.1f} s, {share:.1f} programs a processor")
    assert guest.first_result_s < FIRST_RESULT_S * share
    assert "web: 30 % compute (elastic), 256 MiB" in guest.agent_log
    assert "ready: programs see 1 vGPUs" in guest.agent_log
    health = guest.house.shown(guest.domain)["health"]
    assert (health["state"], health["detail"]) == ("ready", "1 vGPUs")
    assert "transport=vsock" in guest.house.host.log


def test_the_guest_has_neither_gpu_nor_driver(guest: Guest) -> None:
    look = "ls /dev/nvidia* /proc/driver/nvidia 2>/dev/null; ldconfig -p | grep libcuda.so"
    lines = guest.machine.run(["/bin/sh", "-c", look]).out.split()
    paths = [word for word in lines if word.startswith("/")]
    assert sorted(paths) == [f"/opt/gpupool-guest/lib/libcuda.so{end}" for end in ("", ".1")]


@pytest.mark.parametrize("version", ["12.9", "13.0"])
def test_the_real_cuda_runtime_computes(guest: Guest, version: str) -> None:
    import nvidia

    paths = [f"{folder}/{RUNTIMES[version]}" for folder in nvidia.__path__]
    text = (
        "import os, sys\n"
        f"path = next(each for each in {paths!r} if os.path.exists(each))\n"
        "sys.argv = ['program', path]\n"
        + PRELUDE
        + f"KERNEL = {KERNEL!r}\n"
        + """
from tests.guest.fatbin import fatbin, wrap
wrapper, memory = wrap(fatbin(KERNEL, 52))
runtime.__cudaRegisterFatBinary.restype = c_void_p
handle = c_void_p(runtime.__cudaRegisterFatBinary(byref(wrapper)))
stand_in = ctypes.CFUNCTYPE(None)(lambda: None)
function = ctypes.cast(stand_in, c_void_p)
runtime.__cudaRegisterFunction(
    handle, function, b"add", b"add", c_int(-1), None, None, None, None, None)
runtime.__cudaRegisterFatBinaryEnd(handle)
class Dim3(ctypes.Structure):
    _fields_ = [("x", c_uint), ("y", c_uint), ("z", c_uint)]
n = 10_000
numbers, a, b, count = (c_int * n)(*range(n)), c_void_p(), c_void_p(), c_int(n)
for block in (a, b):
    ok(runtime.cudaMalloc(byref(block), c_size_t(4 * n)))
    ok(runtime.cudaMemcpy(block, numbers, c_size_t(4 * n), 1))
parameters = (c_void_p * 3)(*(ctypes.addressof(value) for value in (a, b, count)))
runtime.cudaLaunchKernel.argtypes = [c_void_p, Dim3, Dim3, c_void_p, c_size_t, c_void_p]
ok(runtime.cudaLaunchKernel(function, Dim3(40, 1, 1), Dim3(256, 1, 1), parameters, 0, None))
ok(runtime.cudaMemcpy(numbers, b, c_size_t(4 * n), 2))
print(list(numbers) == [2 * each for each in range(n)])
no_gpu_is_open()
"""
    )
    assert guest.machine.python(text).strip() == "True"


def test_nvml_shows_the_vgpu(guest: Guest) -> None:
    text = """
import pynvml
pynvml.nvmlInit()
one = pynvml.nvmlDeviceGetHandleByIndex(0)
print(pynvml.nvmlDeviceGetCount(), pynvml.nvmlDeviceGetMemoryInfo(one).total >> 20)
"""
    assert guest.machine.python(text).split() == ["1", "256"]


def test_two_programs_at_once(guest: Guest) -> None:
    one, other = guest.stepper(), guest.stepper()
    assert len(guest.house.sessions(guest.domain)) == 2
    assert [step(one), step(other), step(one)] == ["2", "2", "3"]
    for program in (one, other):
        program.signal(signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL
    guest.house.wait(lambda: not guest.house.sessions(guest.domain), "both sessions to end", 20)


def test_the_vgpus_limits_hold(guest: Guest) -> None:
    assert guest.machine.python(MEMORY).split() == ["256", "2", "0"]  # CUDA_ERROR_OUT_OF_MEMORY
    greedy = guest.machine.run(
        [sys.executable, "-c", COUNT],
        {"PYTHONPATH": str(ROOT), "GPUPOOL_COMPUTE_PERCENT": "90"},
    )
    assert greedy.code != 0
    assert "its vGPU has its own" in greedy.err


def test_another_vms_vgpu_is_out_of_reach(guest: Guest) -> None:
    other = guest.house.prepare("db")
    stolen = guest.machine.run(
        [sys.executable, "-c", COUNT], {"PYTHONPATH": str(ROOT), "GPUPOOL_VGPU": "db"}
    )
    assert stolen.code != 0
    assert "this virtual machine has no vGPU 'db'; it has web" in stolen.err
    # Neither its own CID nor the other's leads anywhere, nor do other ports of the host.
    text = f"""
import socket
for address in (({other.cid}, 9177), ({other.cid}, 9178), (2, 9179), (2, 22), (1, 9177), (0, 9177)):
    try:
        with socket.socket(socket.AF_VSOCK) as one:
            one.settimeout(2)
            one.connect(address)
            print("reached", address)
    except OSError as error:
        print(type(error).__name__)
"""
    assert "reached" not in guest.machine.python(text)
    channel = f"""
import json, socket
with socket.socket(socket.AF_VSOCK) as one:
    one.connect((2, 9178))
    one.sendall(b'{{"method": "terms", "uuid": "{other.uuid}", "vgpu": "db"}}\\n')
    print(one.recv(65536).decode())
"""
    answer = json.loads(guest.machine.python(channel))
    assert [one["name"] for one in answer.get("vgpus", [{"name": "web"}])] == ["web"]
    guest.house.call("vm_release", uuid=other.uuid)


def test_a_paused_guest_goes_on(guest: Guest) -> None:
    program = guest.stepper()
    guest.machine.qmp("stop")
    assert guest.machine.qmp("query-status")["status"] == "paused"
    program.write("go\n")
    end = time.monotonic() + 3
    while time.monotonic() < end:  # longer than any wait of the data plane
        assert guest.house.sessions(guest.domain)
        time.sleep(0.2)
    guest.machine.qmp("cont")
    assert program.read_line() == "2"
    assert step(program) == "3"
    program.signal(signal.SIGTERM)
    program.wait()


def test_an_idle_program_keeps_its_session(guest: Guest) -> None:
    """Longer than guest/runtime/transport/vsock_watch.cpp waits for a host that does not answer."""
    program = guest.stepper()
    end = time.monotonic() + 33
    while time.monotonic() < end:
        assert guest.house.sessions(guest.domain)
        time.sleep(1)
    assert step(program) == "2"
    assert not program.err
    program.signal(signal.SIGTERM)
    program.wait()


def test_hostd_restarts_while_a_guests_program_runs(guest: Guest) -> None:
    program = guest.stepper()
    guest.house.host.stop()
    assert step(program) == "2"
    unreachable = guest.machine.run(["/opt/gpupool-guest/agent", "--once", "--wait", "0"])
    assert unreachable.code == 69, unreachable.err
    assert "the host does not answer at vsock://2:9178" in unreachable.err
    guest.house.host.start()
    assert step(program) == "3"
    again = guest.machine.run(["/opt/gpupool-guest/agent", "--once"])
    assert again.code == 0, again.err
    assert guest.machine.python(COUNT).split() == ["3", "True"]
    program.signal(signal.SIGTERM)
    program.wait()
