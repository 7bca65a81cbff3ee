"""Clearing a card's memory, on the software GPU: fresh memory of it holds what a setting says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpupool.hostd.adapters import card_memory
from gpupool.hostd.adapters.card_memory import CudaMemory
from gpupool.hostd.adapters.software_gpu import SoftwareGpus
from gpupool.hostd.core.ports import PortError
from tests.conftest import native_dir

SETTINGS = {"GPUPOOL_SOFTGPU_DEVICES": "2", "GPUPOOL_SOFTGPU_MEMORY_MIB": "64"}
# Clears, and counts what is left in all of its large pieces of memory: those of a software GPU are
# the process's own.
LOOK = """
import sys
sys.path.insert(0, sys.argv[3])
import clear_memory_program as program
found = program.clear(sys.argv[1], sys.argv[2])
left = seen = 0
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb") as memory:
    for line in maps:
        begin, end = (int(word, 16) for word in line.split()[0].split("-"))
        if " rw-" in line and 8 << 20 <= end - begin <= 64 << 20:
            memory.seek(begin)
            content = memory.read(end - begin)
            left += content.count(0xaa)
            seen += content.count(0)
print(found["cleared_bytes"] == found["free_bytes"], left, seen >= found["free_bytes"])
"""


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The software GPU, with two small devices."""
    path = native_dir() / "lib" / "host" / "libgpupool-softgpu.so"
    if not path.exists():
        pytest.skip(f"{path} is missing: run ./run build")
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    return path


def test_all_that_is_free(library: Path) -> None:
    first, second = (one.uuid for one in SoftwareGpus(library, SETTINGS).discover().gpus)
    for uuid in (first, second):
        assert CudaMemory().clear(str(library), uuid) > 60 << 20


def test_it_is_that_card_and_no_other(library: Path) -> None:
    with pytest.raises(PortError, match="does not show GPU GPU-00000000"):
        CudaMemory().clear(str(library), "GPU-00000000-1111-2222-3333-444455556666")


def test_a_library_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="memory of GPU GPU-1 is not cleared"):
        CudaMemory().clear(str(tmp_path / "libcuda.so.1"), "GPU-1")


def test_nothing_is_left(library: Path) -> None:
    uuid = SoftwareGpus(library, SETTINGS).discover().gpus[1].uuid
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(library), uuid, str(Path(card_memory.__file__).parent)],
        env={**SETTINGS, "GPUPOOL_SOFTGPU_LEFTOVER": "170"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "True 0 True\n", (done.stdout, done.stderr)
