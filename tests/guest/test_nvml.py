"""NVML in the guest, asked by NVIDIA's own Python binding (nvidia-ml-py) over each transport."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import TEST_GPU, Host
from tests.e2e.observe import wait_for_line
from tests.guest.shim import run_without_host

pytest.importorskip("pynvml", reason="nvidia-ml-py is missing")

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


def test_what_a_vgpu_is(host: Host, transport: str) -> None:
    told = ask(host, transport)
    listed = json.loads(host.command("devices", "--json").stdout)
    assert [gpu["uuid"] for gpu in told["gpus"]] == [gpu["uuid"] for gpu in listed["gpus"]]
    for index, (gpu, expected) in enumerate(zip(told["gpus"], listed["gpus"], strict=True)):
        assert gpu["name"] == expected["name"]
        assert [gpu["index"], gpu["minor"], gpu["by_uuid"]] == [index, index, index]
        assert [gpu["by_pci"], gpu["by_legacy"]] == [index, index]
        assert gpu["pci"] == expected["pci_bus_id"].upper()
        assert gpu["pci"].endswith(gpu["pci_legacy"][4:])
        assert ".".join(map(str, gpu["capability"])) == expected["compute_capability"]
        assert gpu["memory"][0] >> 20 == expected["memory_mib"]
        assert gpu["memory"][0] == sum(gpu["memory"][1:])
        assert gpu["memory_v2"][0] == sum(gpu["memory_v2"][1:])
        assert gpu["graphics"] == []
        assert gpu["mig"] == [0, 0]
        assert gpu["compute_mode"] == 0
    assert told["driver"].startswith("5")
    assert told["nvml"] == f"13.{told['driver']}"
    assert 12040 <= told["cuda"] <= 13000


def test_what_a_guest_may_not_know(host: Host, transport: str) -> None:
    for gpu in ask(host, transport)["gpus"]:
        for question in ("power", "temperature", "clock", "serial"):
            assert gpu[question] == "Not Supported", question
        assert gpu["newer"] == "Function Not Found"  # of a driver after 580


def test_it_agrees_with_libcuda(host: Host, transport: str) -> None:
    printed = host.run_python(
        transport,
        """
import ctypes, json
from pynvml import *
from tests.guest.cuda import Driver
cuda = Driver().lib
nvmlInit()
count = ctypes.c_int()
assert cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
found = []
for device in range(count.value):
    uuid, bus = (ctypes.c_ubyte * 16)(), ctypes.create_string_buffer(16)
    assert cuda.cuDeviceGetUuid_v2(uuid, device) == 0
    assert cuda.cuDeviceGetPCIBusId(bus, 16, device) == 0
    h = nvmlDeviceGetHandleByIndex(device)
    found.append([nvmlDeviceGetUUID(h).replace("-", "")[3:], bytes(uuid).hex(),
                  nvmlDeviceGetPciInfo(h).busId[4:].lower(), bus.value.decode()])
print(json.dumps(found))
""",
        CUDA_DEVICE_ORDER="PCI_BUS_ID",
    )
    found = json.loads(printed)
    assert found
    for nvml_uuid, cuda_uuid, nvml_bus, cuda_bus in found:
        assert nvml_uuid == cuda_uuid
        assert nvml_bus == cuda_bus


def test_visible_devices_are_not_nvmls_business(host: Host, transport: str) -> None:
    assert ask(host, transport, CUDA_VISIBLE_DEVICES="-1")["gpus"]


def test_a_quota_is_the_memory_there_is(host: Host, transport: str) -> None:
    gpu = ask(host, transport, GPUPOOL_MEMORY_MIB="512")["gpus"][0]
    assert gpu["memory"] == [512 << 20, 512 << 20, 0]
    assert gpu["memory_v2"] == [512 << 20, 0, 512 << 20, 0]


def test_own_memory_and_processes(own_host: Host, transport: str) -> None:
    assert ask(own_host, transport)["gpus"][0]["processes"] == []
    with Holder(own_host, transport, 64) as one, Holder(own_host, transport, 32) as two:
        gpu = ask(own_host, transport)["gpus"][0]
        expected = [[one.pid, 64 << 20], [two.pid, 32 << 20]]
        assert sorted(gpu["processes"]) == sorted(expected)
        assert gpu["processes_v2"] == gpu["processes"]
        assert gpu["memory"][2] == 96 << 20
    own_host.wait_until(lambda: not own_host.sessions(), "the sessions to end")
    gpu = ask(own_host, transport)["gpus"][0]
    assert gpu["processes"] == []
    assert gpu["memory"][2] == 0


def test_every_way_to_allocate_is_counted(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        USED
        + """
used(0)
a = d.alloc(1000)
used(1024)
d.call("cuMemFree_v2", c_uint64(a))
used(0)
p, pitch = c_uint64(), c_size_t()
d.call("cuMemAllocPitch_v2", byref(p), byref(pitch), c_size_t(1000), c_size_t(16), c_uint(4))
used(-(-pitch.value * 16 // 512) * 512)
d.call("cuMemFree_v2", p)
d.call("cuMemAllocAsync", byref(p), c_size_t(3 * MIB), None)
used(3 * MIB)
d.call("cuMemFreeAsync", p, None)
used(0)
""",
    )


def test_a_physical_block_counts_while_anything_holds_it(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        USED
        + """
class Location(Structure):
    _fields_ = [("type", c_int), ("id", c_int)]

class Properties(Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("location", Location), ("win32", c_void_p),
                ("flags", c_ubyte * 8)]

properties = Properties(1, 0, Location(1, 0))  # pinned memory of device 0
size = c_size_t()
d.call("cuMemGetAllocationGranularity", byref(size), byref(properties), c_int(0))
block, address = c_uint64(), c_uint64()
d.call("cuMemCreate", byref(block), size, byref(properties), c_uint64(0))
used(size.value)
d.call("cuMemAddressReserve", byref(address), size, c_size_t(0), c_uint64(0), c_uint64(0))
d.call("cuMemMap", address, size, c_size_t(0), block, c_uint64(0))
d.call("cuMemRelease", block)
used(size.value)  # the mapping holds it
d.call("cuMemUnmap", address, size)
used(0)
""",
    )


def test_a_destroyed_context_gives_its_memory_back(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        USED
        + """
context = c_void_p()
d.alloc(MIB)
d.call("cuCtxCreate_v2", byref(context), c_uint(0), c_int(0))
d.alloc(2 * MIB)
used(3 * MIB)
d.call("cuCtxDestroy_v2", context)
used(MIB)
""",
    )


def test_init_and_shutdown_are_counted(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        """
from pynvml import *
import ctypes
nvml = ctypes.CDLL("libnvidia-ml.so.1")
count = ctypes.c_uint()
UNINITIALIZED, INVALID = 1, 2
assert nvml.nvmlShutdown() == UNINITIALIZED
assert nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == UNINITIALIZED
assert nvml.nvmlDeviceGetPowerUsage(None, ctypes.byref(count)) == UNINITIALIZED
assert nvml.nvmlInit_v2() == 0 and nvml.nvmlInitWithFlags(0) == 0 and nvml.nvmlInit() == 0
assert nvml.nvmlShutdown() == 0 and nvml.nvmlShutdown() == 0
assert nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0 and count.value >= 1
device, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
assert nvml.nvmlDeviceGetHandleByIndex_v2(count.value, ctypes.byref(device)) == INVALID
assert nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) == 0
assert nvml.nvmlDeviceGetName(device, name, 3) == 7  # INSUFFICIENT_SIZE
assert nvml.nvmlDeviceGetName(ctypes.c_void_p(0x1234), name, 96) == INVALID
assert nvml.nvmlDeviceGetHandleByUUID(b"GPU-0", ctypes.byref(device)) == 6  # NOT_FOUND
assert nvml.nvmlInternalGetExportTable(None, None) == 13  # FUNCTION_NOT_FOUND
assert nvml.nvmlShutdown() == 0 and nvml.nvmlShutdown() == UNINITIALIZED
""",
    )


def test_the_host_may_go_and_come_back(own_host: Host, transport: str) -> None:
    asker = own_host.start_client(
        transport,
        sys.executable,
        "-c",
        """
import sys
from pynvml import *
nvmlInit()
h = nvmlDeviceGetHandleByIndex(0)
print("asked", flush=True)
for line in sys.stdin:
    try:
        print("total" if nvmlDeviceGetMemoryInfo(h).total else "nothing", flush=True)
    except NVMLError as error:
        print(error, nvmlDeviceGetName(h) != "", flush=True)
""",
    )
    assert asker.stdin is not None
    wait_for_line(asker, "asked")
    own_host.stop()
    asker.stdin.write("\n")
    asker.stdin.flush()
    wait_for_line(asker, "GPU is lost True")
    own_host.start()
    asker.stdin.write("\n")
    asker.stdin.flush()
    wait_for_line(asker, "total")
    _, errors = asker.communicate(timeout=60)
    assert errors.count("gpupool: NVML: ") == 1, errors


def test_a_later_hostd_still_knows_the_usage(own_host: Host, transport: str) -> None:
    with Holder(own_host, transport, 16) as holder:
        own_host.stop()
        own_host.start()
        assert ask(own_host, transport)["gpus"][0]["processes"] == [[holder.pid, 16 << 20]]


def test_without_a_host() -> None:
    printed = run_without_host(
        """
import ctypes, os, sys
r, w = os.pipe()
os.dup2(w, 2)
nvml = ctypes.CDLL(sys.argv[1].replace("libcuda", "libnvidia-ml"))
print(nvml.nvmlInit_v2())
os.close(w), os.close(2)
print(os.read(r, 4096).decode())
"""
    )
    code, line = printed.strip().split("\n")
    assert code == "9"  # DRIVER_NOT_LOADED
    assert line.startswith("gpupool: NVML: cannot reach unix:/nonexistent/gpupool.sock")


def test_a_wrong_token_is_refused(host: Host, tmp_path: Any) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("wrong")
    done = host.run("tcp", sys.executable, "-c", ASK, GPUPOOL_TOKEN_FILE=str(wrong))
    assert done.returncode != 0
    assert "the client sent a wrong token" in done.stderr
    assert "Driver Not Loaded" in done.stderr


def test_two_doors_do_not_see_each_other(own_host: Host) -> None:
    """A tenant is known by its endpoint: what came in by TCP is not seen through the socket."""
    with Holder(own_host, "tcp", 64) as holder:
        inside, outside = (ask(own_host, each)["gpus"][0] for each in ("tcp", "shm"))
        assert inside["processes"] == [[holder.pid, 64 << 20]]
        assert outside["processes"] == []
        assert outside["memory"][2] == 0
        assert outside["utilization"] == 0


@pytest.mark.gpu
@pytest.mark.skipif(TEST_GPU != "nvidia", reason="GPUPOOL_TEST_GPU is not nvidia")
def test_as_the_real_nvml(host: Host, transport: str) -> None:
    """Constants of the card are those that NVIDIA's library tells on the host."""
    real = subprocess.run(
        [sys.executable, "-c", ASK.replace("nvmlDeviceGetMemoryLimits_v1(h, 0)", "0")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    native, told = json.loads(real.stdout), ask(host, transport)
    assert told["driver"] == native["driver"]
    assert told["cuda"] == min(native["cuda"], 13000)
    for ours, theirs in zip(told["gpus"], native["gpus"], strict=True):
        for question in ("name", "uuid", "index", "pci", "pci_legacy", "capability"):
            assert ours[question] == theirs[question], question
        assert ours["memory"][0] == theirs["memory"][0]
        assert ours["memory_v2"][:2] == theirs["memory_v2"][:2]


# One thread that counts to n.
SPIN = """
from tests.guest.kernels import Parameters, get_function, launch, load_module
PTX = b'''
.version 8.0
.target sm_80
.address_size 64
.visible .entry spin(.param .u64 out, .param .u64 n)
{
  .reg .pred %p<2>;
  .reg .b64 %rd<5>;
  ld.param.u64 %rd1, [out];
  ld.param.u64 %rd2, [n];
  mov.u64 %rd3, 0;
again:
  add.u64 %rd3, %rd3, 1;
  st.volatile.global.u64 [%rd1], %rd3;
  setp.lt.u64 %p1, %rd3, %rd2;
  @%p1 bra again;
  ret;
}
'''
function = get_function(d, load_module(d, PTX), "spin")
out = d.alloc(8)

def spin(n):
    assert launch(d, function, parameters=Parameters(c_uint64(out), c_uint64(n))) == 0

def load():
    return nvmlDeviceGetUtilizationRates(h).gpu

# How far it counts in a second.
n = 1000
while True:
    start = time.monotonic()
    spin(n)
    d.call("cuCtxSynchronize")
    took = time.monotonic() - start
    if took > 0.1:
        break
    n *= 4
n = int(n / took)
"""


def test_utilisation_is_the_share_of_time_with_work(own_host: Host, transport: str) -> None:
    own_host.run_python(
        transport,
        USED
        + SPIN
        + """
spin(3 * n)  # and nobody waits for it
time.sleep(1.5)
assert load() >= 80, load()
mine = nvmlDeviceGetProcessUtilization(h, 0)
assert [one.pid for one in mine] == [os.getpid()] and mine[0].smUtil >= 80
d.call("cuCtxSynchronize")
time.sleep(1.3)
assert load() <= 4, load()
deadline = time.monotonic() + 2.2  # a fifth of the time
while time.monotonic() < deadline:
    spin(n // 10)
    d.call("cuCtxSynchronize")
    time.sleep(0.4)
assert 5 <= load() <= 60, load()
""",
    )


def test_what_is_captured_is_no_work_and_is_not_disturbed(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        USED
        + SPIN
        + """
stream, graph = c_void_p(), c_void_p()
d.call("cuStreamCreate", byref(stream), c_uint(1))
d.call("cuStreamBeginCapture_v2", stream, c_int(0))
assert launch(d, function, parameters=Parameters(c_uint64(out), c_uint64(9)), stream=stream) == 0
time.sleep(1.2)  # sampled fifty times meanwhile
assert load() <= 4, load()
d.call("cuStreamEndCapture", stream, byref(graph))
assert graph.value
""",
    )
