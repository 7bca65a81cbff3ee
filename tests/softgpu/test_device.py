"""Devices: what they say, and that the environment decides how many there are."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from ctypes import byref, c_int, c_size_t
from pathlib import Path

import pytest

from tests.softgpu.driver import INVALID_VALUE, Driver

ROOT = Path(__file__).parent.parent.parent
COUNT_SCRIPT = """
import ctypes, json, sys
from tests.softgpu.driver import Driver
d = Driver(sys.argv[1])
d.cuInit(0)
count = ctypes.c_int()
d.cuDeviceGetCount(ctypes.byref(count))
found = []
for i in range(count.value):
    uuid = (ctypes.c_ubyte * 16)()
    d.cuDeviceGetUuid_v2(uuid, i)
    bus = ctypes.create_string_buffer(32)
    d.cuDeviceGetPCIBusId(bus, 32, i)
    back = ctypes.c_int()
    d.cuDeviceGetByPCIBusId(ctypes.byref(back), bus)
    total = ctypes.c_size_t()
    d.cuDeviceTotalMem_v2(ctypes.byref(total), i)
    found.append([bytes(uuid).hex(), bus.value.decode(), back.value, total.value])
print(json.dumps(found))
"""


def attribute(driver: Driver, number: int) -> int:
    value = c_int(-12345)
    driver.cuDeviceGetAttribute(byref(value), number, 0)
    return value.value


def test_a_device_says_what_it_is(driver: Driver) -> None:
    name = ctypes.create_string_buffer(100)
    driver.cuDeviceGetName(name, 100, 0)
    assert name.value == b"gpupool software GPU"
    version = c_int()
    driver.cuDriverGetVersion(byref(version))
    assert version.value == 13000


def test_every_attribute_has_a_value_and_no_other(driver: Driver) -> None:
    for number in range(1, 148):
        assert attribute(driver, number) != -12345
    value = c_int(-12345)
    for number in (0, 148, 1000, -1):
        assert driver.result.cuDeviceGetAttribute(byref(value), number, 0) == INVALID_VALUE
    assert value.value == -12345


def test_attributes_that_programs_decide_by(driver: Driver) -> None:
    assert attribute(driver, 1) == 1024  # threads a block
    assert attribute(driver, 10) == 32  # warp
    assert attribute(driver, 16) >= 1  # multiprocessors
    assert (attribute(driver, 75), attribute(driver, 76)) == (8, 0)  # compute capability
    assert attribute(driver, 41) == 1  # unified addressing
    assert attribute(driver, 83) == 0  # managed memory
    assert attribute(driver, 95) == 0  # cooperative launch
    assert attribute(driver, 102) == 1  # virtual memory management
    assert attribute(driver, 115) == 1  # pools
    assert attribute(driver, 122) == 1  # 64-bit stream memory operations


def test_the_environment_makes_devices(library: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_SCRIPT, str(library)],
        env=dict(os.environ, GPUPOOL_SOFTGPU_DEVICES="3", GPUPOOL_SOFTGPU_MEMORY_MIB="64"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = json.loads(done.stdout)
    assert [row[1] for row in found] == ["0000:f0:00.0", "0000:f1:00.0", "0000:f2:00.0"]
    assert [row[2] for row in found] == [0, 1, 2]
    assert [row[3] for row in found] == [64 << 20] * 3
    assert len({row[0] for row in found}) == 3


@pytest.mark.parametrize("value", ["0", "17", "two", "-1"])
def test_a_wrong_number_of_devices_is_refused_by_name(library: Path, value: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import ctypes,sys; sys.exit(ctypes.CDLL(sys.argv[1]).cuInit(0))",
            str(library),
        ],
        env=dict(os.environ, GPUPOOL_SOFTGPU_DEVICES=value),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == INVALID_VALUE
    assert f"GPUPOOL_SOFTGPU_DEVICES={value}" in done.stderr


def test_nothing_works_before_init(library: Path) -> None:
    script = "import ctypes,sys; sys.exit(ctypes.CDLL(sys.argv[1]).cuCtxSynchronize())"
    done = subprocess.run([sys.executable, "-c", script, str(library)], check=False, timeout=60)
    assert done.returncode == 3


def test_memory_info_follows_allocations(driver: Driver) -> None:
    def free() -> int:
        available, total = c_size_t(), c_size_t()
        driver.cuMemGetInfo_v2(byref(available), byref(total))
        return available.value

    before = free()
    address = driver.allocate(1_000_000)
    assert before - free() == 1_000_448  # rounded to 512
    driver.cuMemFree_v2(ctypes.c_uint64(address))
    assert free() == before
