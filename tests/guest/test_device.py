"""Devices as a program sees them: what they claim, and which of them are visible."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import Host
from tests.guest.shim import run_without_host, shim_path

PRELUDE = """
import ctypes
from ctypes import byref, c_int, c_uint, c_size_t, c_void_p
driver = ctypes.CDLL("libcuda.so.1")
number = c_int(77)
def attribute(which, device=0):
    value = c_int(77)
    result = driver.cuDeviceGetAttribute(byref(value), which, device)
    return value.value if result == 0 else -result
def count():
    value = c_int(77)
    result = driver.cuDeviceGetCount(byref(value))
    return value.value if result == 0 else -result
"""

# What a program may not rely on: CUdevice_attribute numbers.
ALWAYS_ZERO = (88, 91, 100, 101, 110, 116, 124, 128, 132)
CAN_MAP_HOST_MEMORY = 19


def test_attributes(host: Host, transport: str) -> None:
    printed = host.run_python(
        transport,
        PRELUDE
        + f"""
assert driver.cuInit(0) == 0
assert [attribute(which) for which in {ALWAYS_ZERO}] == [0] * {len(ALWAYS_ZERO)}
assert [attribute(which) for which in (0, -1, 192, 500)] == [-1] * 4
assert attribute(1, device=99) == -101
assert attribute(16) > 0 and attribute(10) == 32
print(attribute({CAN_MAP_HOST_MEMORY}))
""",
    )
    assert int(printed) == (1 if transport in ("shm", "window") else 0)


def test_names_and_places(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
assert driver.cuInit(0) == 0
assert driver.cuDeviceGet(byref(number), -1) == 101
assert driver.cuDeviceGet(byref(number), 99) == 101
assert driver.cuDeviceGet(None, 0) == 1
text = ctypes.create_string_buffer(64)
assert driver.cuDeviceGetName(text, 64, 0) == 0
name = text.value
assert driver.cuDeviceGetName(text, 4, 0) == 0
assert text.value == name[:3]
assert driver.cuDeviceGetName(None, 4, 0) == 1
assert driver.cuDeviceGetPCIBusId(text, 64, 0) == 0
place = text.value
assert driver.cuDeviceGetPCIBusId(text, len(place), 0) == 1
assert driver.cuDeviceGetPCIBusId(text, len(place) + 1, 0) == 0
for good in (place, place[:-2], place.upper(), b"0000" + place):
    assert driver.cuDeviceGetByPCIBusId(byref(number), good) == 0, good
    assert number.value == 0
for bad, result in ((b"zz", 1), (b"", 1), (b"00:06", 1), (b"ffff:00:00.0", 101)):
    assert driver.cuDeviceGetByPCIBusId(byref(number), bad) == result, bad
one, two = (ctypes.c_ubyte * 16)(), (ctypes.c_ubyte * 16)()
assert driver.cuDeviceGetUuid(one, 0) == 0 and driver.cuDeviceGetUuid_v2(two, 0) == 0
assert bytes(one) == bytes(two) != bytes(16)
size, small = c_size_t(), c_uint()
assert driver.cuDeviceTotalMem_v2(byref(size), 0) == 0
assert driver.cuDeviceTotalMem(byref(small), 0) == 0
assert small.value == min(size.value, 0xffffffff)
assert driver.cuDeviceGetLuid(text, byref(small), 0) == 801
assert driver.cuDeviceCanAccessPeer(byref(number), 0, 0) == 0 and number.value == 0
assert driver.cuDeviceCanAccessPeer(byref(number), 0, 99) == 101
assert driver.cuDeviceGetP2PAttribute(byref(number), 1, 0, 0) == 101
properties = (c_int * 14)()
assert driver.cuDeviceGetProperties(properties, 0) == 0
assert list(properties)[:4] == [attribute(1), attribute(2), attribute(3), attribute(4)]
assert properties[9] == 32 and properties[13] == attribute(14)
""",
    )


@pytest.mark.parametrize(
    ("visible", "init", "devices"),
    [
        (None, 0, 1),
        ("0", 0, 1),
        ("0,5", 0, 1),
        ("", 100, -3),
        ("-1", 100, -3),
        ("5,0", 100, -3),
        ("0,0", 101, -3),
        ("GPU-", 100, -3),
    ],
)
def test_visible_devices(host: Host, visible: str | None, init: int, devices: int) -> None:
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    printed = host.run_python(
        "shm", PRELUDE + "print(count(), driver.cuInit(0), count(), driver.cuInit(0))", **variables
    )
    assert [int(word) for word in printed.split()] == [-3, init, devices, init]


def test_a_uuid_makes_its_device_visible(host: Host) -> None:
    uuid = host.run_python(
        "shm",
        PRELUDE
        + """
import uuid
assert driver.cuInit(0) == 0
one = (ctypes.c_ubyte * 16)()
assert driver.cuDeviceGetUuid_v2(one, 0) == 0
print("GPU-" + str(uuid.UUID(bytes=bytes(one))))
""",
    ).strip()
    for text, wanted in ((uuid, "0"), (uuid[:9], "0"), (uuid[:-1] + "!", "100")):
        printed = host.run_python(
            "shm", PRELUDE + "print(driver.cuInit(0))", CUDA_VISIBLE_DEVICES=text
        )
        assert printed.strip() == wanted, text


def test_before_init_and_after_a_wrong_one() -> None:
    printed = run_without_host("""
import ctypes, sys
from ctypes import byref, c_int, c_uint, c_void_p
driver = ctypes.CDLL(sys.argv[1])
number, active, pointer = c_int(77), c_int(77), c_void_p(5)
print(driver.cuDriverGetVersion(byref(number)), number.value)
print(driver.cuInit(1))
print(driver.cuDeviceGetCount(byref(number)), driver.cuCtxGetCurrent(byref(pointer)))
print(driver.cuDevicePrimaryCtxGetState(0, byref(number), byref(active)))
print(pointer.value, active.value)
""")
    assert printed.split("\n")[:5] == ["0 13000", "1", "3 3", "3", "5 77"]


def test_without_a_host_one_line_says_what_to_do() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).cuInit(0))",
            str(shim_path()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=dict(os.environ, GPUPOOL_ENDPOINT="unix:/nonexistent/gpupool.sock"),
    )
    assert done.stdout.strip() == "100"
    lines = done.stderr.strip().split("\n")
    assert len(lines) == 1, lines
    assert lines[0].startswith("gpupool: ")
    assert "/nonexistent/gpupool.sock" in lines[0]


def test_every_error_has_a_name_and_a_description() -> None:
    printed = run_without_host("""
import ctypes, sys
driver = ctypes.CDLL(sys.argv[1])
text = ctypes.c_char_p()
known = []
for number in range(1200):
    result = driver.cuGetErrorName(number, ctypes.byref(text))
    name = text.value
    assert driver.cuGetErrorString(number, ctypes.byref(text)) == result
    assert (result, name, text.value) == (1, None, None) or (result == 0 and name and text.value)
    if result == 0:
        known.append(number)
        assert name == b"CUDA_SUCCESS" or name.startswith(b"CUDA_ERROR_"), name
print(len(known), len(set(known)), known[-1])
""")
    assert printed.split() == ["101", "101", "999"]


def test_threads_may_outlive_a_dlclose(host: Host) -> None:
    host.run_python(
        "shm",
        """
import ctypes, threading
dlclose = ctypes.CDLL(None).dlclose
dlclose.argtypes = [ctypes.c_void_p]
driver = ctypes.CDLL("libcuda.so.1")
closed, used = threading.Event(), threading.Event()
def work():
    assert driver.cuInit(0) == 0
    assert driver.cuCtxGetDevice(ctypes.byref(ctypes.c_int())) == 201
    assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), 0) == 0
    used.set()
    closed.wait(30)
thread = threading.Thread(target=work)
thread.start()
assert used.wait(30)
while dlclose(driver._handle) != 0:
    pass
closed.set()
thread.join()
""",
    )
