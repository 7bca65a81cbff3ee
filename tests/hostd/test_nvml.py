"""NVML, played by a small C library: pynvml is real, and loads what hostd found by path."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gpupool.hostd.adapters.nvml import NvmlGpus
from gpupool.hostd.core.gpu import Card
from tests.fakes.daemon import ROOT

pytest.importorskip("pynvml", reason="nvidia-ml-py is missing")

_NVML = r"""
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
static long setting(const char* name, long otherwise) {
  const char* text = getenv(name);
  return text ? atol(text) : otherwise;
}
int nvmlInitWithFlags(unsigned flags) { return (int)setting("NVML_INIT", 0); }
int nvmlInit_v2(void) { return (int)setting("NVML_INIT", 0); }
int nvmlShutdown(void) { return 0; }
const char* nvmlErrorString(int result) {
  return result == 9 ? "Driver Not Loaded" : "GPU is lost";
}
int nvmlSystemGetDriverVersion(char* text, unsigned size) {
  snprintf(text, size, "%ld.95.05", setting("NVML_DRIVER", 580));
  return 0;
}
int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = (unsigned)setting("NVML_COUNT", 2);
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  if ((long)index == setting("NVML_LOST", -1)) return 15;
  *device = (void*)(long)(index + 1);
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void* device, int* major, int* minor) {
  *major = 9;
  *minor = 0;
  return 0;
}
int nvmlDeviceGetUUID(void* device, char* text, unsigned size) {
  snprintf(text, size, "GPU-%ld", (long)device);
  return 0;
}
int nvmlDeviceGetName(void* device, char* text, unsigned size) {
  snprintf(text, size, "NVIDIA H100 80GB HBM3");
  return 0;
}
int nvmlDeviceGetMemoryInfo(void* device, unsigned long long* total_free_used) {
  total_free_used[0] = (81559ull << 20) + 4096;
  return 0;
}
int nvmlSystemGetCudaDriverVersion_v2(int* version) { *version = 13000; return 0; }
int nvmlDeviceGetPersistenceMode(void* device, int* mode) { *mode = 1; return 0; }
int nvmlDeviceGetP2PStatus(void* one, void* other, int index, int* status) {
  *status = index ? 5 : 0;
  return 0;
}
struct process { unsigned pid; unsigned long long used; unsigned gpu, compute; };
int nvmlDeviceGetComputeRunningProcesses_v3(void* device, unsigned* count, struct process* found) {
  if ((long)device == 2) return 3;
  if (*count < 2 || !found) { *count = 2; return 7; }
  *count = 2;
  memset(found, 0, 2 * sizeof *found);
  found[0].pid = 4242;
  found[0].used = 600ull << 20;
  found[1].pid = 4243;
  found[1].used = ~0ull; /* not known */
  return 0;
}
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
int nvmlDeviceGetPciInfo_v3(void* device, struct pci* pci) {
  memset(pci, 0, sizeof *pci);
  pci->id = 0x233010de;
  snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02lX:00.0", (long)device);
  return 0;
}
"""
_PROBE = """
import dataclasses, json, sys
from gpupool.hostd.adapters.nvml import NvmlGpus
print(json.dumps(dataclasses.asdict(NvmlGpus(folders=sys.argv[1:]).discover())))
"""


def compile_library(source: str, target: Path) -> None:
    """A shared library with its file name as SONAME."""
    soname = f"-Wl,-soname,{target.name}"
    command = ["g++", "-x", "c", "-w", "-", "-shared", "-fPIC", soname, "-o", str(target)]
    subprocess.run(command, input=source, text=True, check=True, timeout=60)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like /usr/lib/x86_64-linux-gnu on a machine with two cards."""
    folder = tmp_path_factory.mktemp("driver")
    compile_library(_NVML, folder / "libnvidia-ml.so.1")
    compile_library("int cuInit(unsigned flags) { return 0; }", folder / "libcuda.so.1")
    return folder


def look(folder: Path, **variables: str) -> dict[str, Any]:
    """Discovery in a process of its own: pynvml loads its library once."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(folder)],
        env={"PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def test_the_cards(driver: Path) -> None:
    found = look(driver)
    assert found["driver_version"] == "580.95.05"
    assert found["library"] == str(driver / "libcuda.so.1")
    assert found["notes"] == []
    assert found["cuda_version"] == 13000
    assert found["gpus"] == [
        {
            "uuid": f"GPU-{number}",
            "name": "NVIDIA H100 80GB HBM3",
            "memory_mib": 81559,
            "source": "nvidia",
            "index": number - 1,
            "pci_bus_id": f"00000000:0{number}:00.0",
            "compute_capability": "9.0",
            # What this driver does not tell is null, and hides nothing.
            "card": {
                **dict.fromkeys(asdict(Card())),
                "memory_bytes": (81559 << 20) + 4096,
                "pci_device_id": 0x233010DE,
                "pci_subsystem_id": 0,
                "persistence_enabled": 1,
                "peers": [[f"GPU-{3 - number}"], [], [], [], []],
            },
        }
        for number in (1, 2)
    ]


@pytest.mark.parametrize(
    ("variables", "note"),
    [
        ({"NVML_DRIVER": "535"}, "NVIDIA driver 535.95.05 is too old: gpupool needs 550"),
        ({"NVML_INIT": "9"}, "NVML does not start: Driver Not Loaded"),
        ({"NVML_COUNT": "0"}, "the NVIDIA driver is there but shows no GPU"),
    ],
)
def test_why_there_is_none(driver: Path, variables: dict[str, str], note: str) -> None:
    found = look(driver, **variables)
    assert found["gpus"] == []
    assert any(note in str(one) for one in found["notes"])


def test_a_lost_card_does_not_hide_the_other(driver: Path) -> None:
    found = look(driver, NVML_LOST="0")
    assert [gpu["index"] for gpu in found["gpus"]] == [1]
    assert "GPU 0: " in str(found["notes"])


def test_a_driver_without_libcuda(driver: Path, tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").symlink_to(driver / "libnvidia-ml.so.1")
    found = look(tmp_path)
    assert found["gpus"] == []
    assert "libcuda.so.1 was not found" in str(found["notes"])


def test_a_machine_without_a_driver(tmp_path: Path) -> None:
    inventory = NvmlGpus(folders=[str(tmp_path)]).discover()
    assert inventory.gpus == ()
    assert inventory.notes == ("no NVIDIA driver: libnvidia-ml.so.1 was not found",)


def test_a_libcuda_named_in_the_configuration(driver: Path, tmp_path: Path) -> None:
    found = NvmlGpus(str(tmp_path / "libcuda.so.9"), [str(driver)])._find_libcuda()
    assert found[0] is None
    assert "names no usable library" in found[1][-1]
    found = NvmlGpus(str(driver / "libcuda.so.1"), [str(tmp_path)])._find_libcuda()
    assert found[0] == driver / "libcuda.so.1"


def test_what_processes_hold(driver: Path) -> None:
    """Of cards that tell, and processes whose memory is known."""
    probe = (
        "import json, sys; from gpupool.hostd.adapters.nvml import NvmlProcesses; "
        "print(json.dumps(NvmlProcesses(folders=sys.argv[1:]).look()))"
    )

    def held(folder: Path, **variables: str) -> object:
        done = subprocess.run(
            [sys.executable, "-c", probe, str(folder)],
            env={"PYTHONPATH": str(ROOT), **variables},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return json.loads(done.stdout)

    assert held(driver) == {"GPU-1": {"4242": 600 << 20}}
    assert held(driver, NVML_INIT="9") == {}
    assert held(driver / "nowhere") == {}
