"""The software GPU is asked in a process of its own."""

from __future__ import annotations

from pathlib import Path

from gpupool.hostd.adapters.software_gpu import SoftwareGpus
from gpupool.hostd.core.gpu import Card, Gpu
from tests.fakes.native import GPU_UUID


def test_its_devices(native: Path) -> None:
    library = native / "lib/host/libgpupool-softgpu.so"
    inventory = SoftwareGpus(library, {}).discover()
    assert inventory.gpus == (
        Gpu(
            GPU_UUID,
            "Fake GPU",
            1024,
            "software",
            0,
            pci_bus_id="00000000:0A:00.0",
            compute_capability="9.0",
            card=Card(memory_bytes=1 << 30, multiprocessors=0),
        ),
    )
    assert inventory.cuda_version == 13000
    assert inventory.library == str(library)
    assert inventory.notes == ()


def test_one_that_does_not_start(native: Path) -> None:
    variables = {"GPUPOOL_SOFTGPU_BROKEN": "1", "LD_PRELOAD": "/nowhere"}
    inventory = SoftwareGpus(native / "lib/host/libgpupool-softgpu.so", variables).discover()
    assert inventory.gpus == ()
    assert inventory.notes == ("the software GPU does not start: cuInit returned 999",)


def test_a_library_without_the_driver_api(native: Path) -> None:
    inventory = SoftwareGpus(native / "lib/guest/libcuda.so.1", {}).discover()
    assert "undefined symbol: cuInit" in inventory.notes[0]


def test_none() -> None:
    assert "not built" in SoftwareGpus(None, {}).discover().notes[0]
