"""Asking the guest's NVML through NVIDIA's own Python binding, for the tests of it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.conftest import Host
from tests.e2e.observe import wait_for_line

# Prints one JSON object: what the binding's questions are answered with.
ASK = """
import json, sys
from pynvml import *
nvmlInit()

def tell(ask):
    try:
        return ask()
    except NVMLError as error:
        return str(error)

def look(h):
    memory, second = nvmlDeviceGetMemoryInfo(h), nvmlDeviceGetMemoryInfo(h, version=nvmlMemory_v2)
    pci = nvmlDeviceGetPciInfo(h)
    return {
        "name": nvmlDeviceGetName(h), "uuid": nvmlDeviceGetUUID(h),
        "index": nvmlDeviceGetIndex(h), "minor": nvmlDeviceGetMinorNumber(h),
        "pci": pci.busId, "pci_legacy": pci.busIdLegacy,
        "capability": list(nvmlDeviceGetCudaComputeCapability(h)),
        "memory": [memory.total, memory.free, memory.used],
        "memory_v2": [second.total, second.reserved, second.free, second.used],
        "utilization": nvmlDeviceGetUtilizationRates(h).gpu,
        "processes": [[p.pid, p.usedGpuMemory] for p in nvmlDeviceGetComputeRunningProcesses(h)],
        "processes_v2": [[p.pid, p.usedGpuMemory]
                         for p in nvmlDeviceGetComputeRunningProcesses_v2(h)],
        "graphics": nvmlDeviceGetGraphicsRunningProcesses(h),
        "mig": nvmlDeviceGetMigMode(h), "compute_mode": nvmlDeviceGetComputeMode(h),
        "power": tell(lambda: nvmlDeviceGetPowerUsage(h)),
        "temperature": tell(lambda: nvmlDeviceGetTemperature(h, NVML_TEMPERATURE_GPU)),
        "clock": tell(lambda: nvmlDeviceGetClockInfo(h, NVML_CLOCK_SM)),
        "serial": tell(lambda: nvmlDeviceGetSerial(h)),
        "newer": tell(lambda: nvmlDeviceGetMemoryLimits_v1(h, 0)),
        "by_uuid": nvmlDeviceGetIndex(nvmlDeviceGetHandleByUUID(nvmlDeviceGetUUID(h))),
        "by_pci": nvmlDeviceGetIndex(nvmlDeviceGetHandleByPciBusId(pci.busId)),
        "by_legacy": nvmlDeviceGetIndex(nvmlDeviceGetHandleByPciBusId(pci.busIdLegacy)),
    }

def everything():
    return {
        "driver": nvmlSystemGetDriverVersion(), "nvml": nvmlSystemGetNVMLVersion(),
        "cuda": nvmlSystemGetCudaDriverVersion_v2(),
        "gpus": [look(nvmlDeviceGetHandleByIndex(i)) for i in range(nvmlDeviceGetCount())],
    }

print(json.dumps(everything()))
"""
# Allocates what argv[1] says in MiB, and holds it to the end of its standard input.
HOLD = """
import sys
from tests.guest.cuda import Driver
driver = Driver()
driver.alloc(int(sys.argv[1]) << 20)
print("holding", flush=True)
sys.stdin.read()
"""


# Waits until NVML shows that this process uses so many bytes of GPU 0: frees are not waited for.
USED = """
import os, time
from ctypes import *
from pynvml import *
from tests.guest.cuda import Driver
d = Driver()
nvmlInit()
h = nvmlDeviceGetHandleByIndex(0)
MIB = 1 << 20

def used(expected):
    deadline = time.monotonic() + 10
    while True:
        found = [p.usedGpuMemory for p in nvmlDeviceGetComputeRunningProcesses(h)
                 if p.pid == os.getpid()]
        if found == [expected]:
            return
        assert time.monotonic() < deadline, (found, expected)
        time.sleep(0.01)
"""


def ask(host: Host, transport: str, **variables: str) -> dict[str, Any]:
    """What a fresh process is answered."""
    told: dict[str, Any] = json.loads(host.run_python(transport, ASK, **variables))
    return told


class Holder:
    """A program that holds memory on a vGPU, as a context manager."""

    def __init__(self, host: Host, transport: str, mib: int, **variables: str) -> None:
        command = (sys.executable, "-c", HOLD, str(mib))
        self.process = host.start_client(transport, *command, **variables)

    def __enter__(self) -> subprocess.Popen[str]:
        wait_for_line(self.process, "holding")
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)
