"""NVML in the guest, asked by NVIDIA's own Python binding (nvidia-ml-py) over each transport."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TEST_GPU, Host, end_host, make_host
from tests.e2e.observe import wait_for_line
from tests.guest.nvml import ASK, USED, ask
from tests.guest.shim import run_without_host

pytest.importorskip("pynvml", reason="nvidia-ml-py is missing")


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
    host.wait_until(lambda: not host.sessions(), "earlier sessions to end")
    gpu = ask(host, transport, GPUPOOL_MEMORY_MIB="512")["gpus"][0]
    assert gpu["memory"] == [512 << 20, 512 << 20, 0]
    assert gpu["memory_v2"] == [512 << 20, 0, 512 << 20, 0]


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


@pytest.fixture
def three_gpus() -> Iterator[Host]:
    """A hostd with three software GPUs."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        os.environ["GPUPOOL_SOFTGPU_DEVICES"] = "3"
        try:
            host = make_host(Path(name))
        finally:
            del os.environ["GPUPOOL_SOFTGPU_DEVICES"]
        yield host
        end_host(host)


@pytest.mark.softgpu
def test_several_gpus(three_gpus: Host, transport: str) -> None:
    """Each has its own account, and its index is that of CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    told = three_gpus.run_python(
        transport,
        USED
        + """
assert d.lib.cuInit(0) == 0
for device in (0, 1, 2):
    context, uuid = c_void_p(), (c_ubyte * 16)()
    d.call("cuCtxCreate_v2", byref(context), c_uint(0), c_int(device))
    d.alloc((device + 1) * MIB)
    d.call("cuDeviceGetUuid_v2", uuid, c_int(device))
    h = nvmlDeviceGetHandleByIndex(device)
    used((device + 1) * MIB)
    assert nvmlDeviceGetUUID(h).replace("-", "")[3:] == bytes(uuid).hex()
    assert nvmlDeviceGetMemoryInfo(h).used == (device + 1) * MIB
first, second = nvmlDeviceGetHandleByIndex(0), nvmlDeviceGetHandleByIndex(1)
READ, NOT_SUPPORTED = 0, 5
assert nvmlDeviceGetP2PStatus(first, second, READ) == NOT_SUPPORTED
assert nvmlDeviceGetP2PStatus(first, first, READ) == 0
assert nvmlDeviceGetTopologyCommonAncestor(first, second) == NVML_TOPOLOGY_SYSTEM
for ask, info in ((nvmlDeviceGetGpuFabricInfo, c_nvmlGpuFabricInfo_t()),
                  (nvmlDeviceGetGpuFabricInfoV, c_nvmlGpuFabricInfo_v2_t()),
                  (nvmlDeviceGetGpuFabricInfoV, c_nvmlGpuFabricInfo_v3_t())):
    info.state = 9
    ask(first, byref(info))
    assert info.state == NVML_GPU_FABRIC_STATE_NOT_SUPPORTED
print(nvmlDeviceGetCount())
""",
        CUDA_DEVICE_ORDER="PCI_BUS_ID",
    )
    assert told == "3\n"


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
