"""Frameworks in a guest without GPU and driver, on a vGPU of this machine's NVIDIA GPU.

The guest is emulated, with this machine's root over 9p: a program's own instructions take some
thirty times as long as on the processor itself. Where QEMU cannot be installed,
GPUPOOL_TEST_VM_BUNDLE names an archive of `python -m tests.vm.bundle`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tree import ROOT
from tests.vm import bundle, initramfs, kernel
from tests.vm import machine as emulator
from tests.vm.house import House, open_house
from tests.vm.machine import Machine

pytestmark = [pytest.mark.gpu, pytest.mark.vm, pytest.mark.timeout(900)]

# The machine's own driver, with all that would find it: a guest's image has none.
HIDE_DRIVER = r"""
for library in $(ldconfig -p | sed -n 's/.* => \(.*libcuda\.so.*\)/\1/p') \
    /usr/lib/x86_64-linux-gnu/libcuda.so /usr/local/nvidia/lib64/libcuda.so; do
  folder=$(dirname "$library")
  rm -f "$folder"/libcuda.so* "$folder"/libnvidia-*.so* "$folder"/libcudadebugger.so*
done
rm -rf /usr/local/nvidia
ldconfig
ldconfig -p | grep -c 'libcuda\.so' || true
"""
DRIVER_API = """
from tests.e2e.client import Counter
counter = Counter()
for _ in range(1000):
    counter.add()
print(counter.value())
"""
CUPY = """
import cupy
a = cupy.arange(1 << 20, dtype=cupy.int64)
print(int((a * 2).sum()), cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())
"""
PYTORCH = """
import time
began = time.monotonic()
import torch
print(f"imported after {time.monotonic() - began:.1f} s", flush=True)
print(torch.cuda.get_device_name(0), torch.cuda.mem_get_info()[1] >> 20, flush=True)
torch.manual_seed(1)
a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
b = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
print(f"data after {time.monotonic() - began:.1f} s", flush=True)
c = a @ b
torch.cuda.synchronize()
print(f"product after {time.monotonic() - began:.1f} s", flush=True)
wanted = a[:64].double() @ b.double()
print("right", bool(torch.allclose(c[:64].double(), wanted, rtol=0.02, atol=2.0)))
"""


@dataclass
class Guest:
    """A guest on the machine's GPU, and the Python that has the frameworks."""

    house: House
    machine: Machine
    python: str

    def run(self, text: str, timeout_s: float) -> str:
        """A program's output, and how long it took."""
        began = time.monotonic()
        command = [self.python, "-c", text]
        done = self.machine.run(command, {"PYTHONPATH": str(ROOT)}, timeout_s)
        taken_s = time.monotonic() - began
        assert done.code == 0, f"{done.out}\n{done.err}\n{self.house.host.log[-3000:]}"
        print(f"\n{done.out}in a guest: {taken_s:.1f} s")
        return done.out


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    if not Path("/dev/nvidiactl").exists():
        pytest.skip("no NVIDIA GPU: /dev/nvidiactl is missing")
    archive = os.environ.get("GPUPOOL_TEST_VM_BUNDLE")
    with tempfile.TemporaryDirectory(prefix="gpupool-bundle-") as name:
        try:
            folder = bundle.unpack(Path(archive), Path(name)) if archive else kernel.FOLDER
            emulator.qemu()
            initramfs.busybox()
            found = kernel.find(folder)
        except kernel.MissingError as problem:
            pytest.skip(str(problem))
        with open_house(found, "nvidia") as house:
            yield start(house)


def start(house: House) -> Guest:
    """Boots it."""
    began = time.monotonic()
    domain = house.prepare("guest", compute_percent=50, memory_mib=20480)
    processors = max(1, min(8, (os.cpu_count() or 1) // 2))
    machine = house.boot(domain, memory_mib=8192, processors=processors)
    kernel_s = machine.wait_ready(240)
    left = machine.run(["/bin/sh", "-c", HIDE_DRIVER], timeout_s=240)
    assert left.out.strip() == "0", left.out + left.err
    said = house.install(machine)
    print(f"\n{said}ready after {time.monotonic() - began:.1f} s, its kernel says {kernel_s:.1f} s")
    return Guest(house, machine, os.environ.get("GPUPOOL_FRAMEWORK_PYTHON", "python3"))


def test_the_driver_api(guest: Guest) -> None:
    assert guest.run(DRIVER_API, 90).split() == ["1000"]


def test_pytorch(guest: Guest) -> None:
    assert "right True" in guest.run(PYTORCH, 300)


def test_cupy(guest: Guest) -> None:
    """It compiles its kernel in the guest, which is what takes long."""
    assert guest.run(CUPY, 240).split()[0] == str((1 << 20) * ((1 << 20) - 1))
