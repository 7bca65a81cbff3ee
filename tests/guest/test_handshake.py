"""The handshake of table d4082055, checked with another implementation of MD2."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from tests.conftest import Host
from tests.guest.shim import run_without_host

KEY = bytes.fromhex("146addae53a9a752aa0841360bf55a9f")
FIXED = {0: (0x3341181C03CB675C, 0x8ED383AA1F4CD1E8), 1: (0x1841181C03CB675C, 0x8ED383AA1F4CD1E8)}

# Prints what the answer must cover and the answer, as JSON. argv[1] is the library.
ASK = """
import ctypes, json, os, sys, threading
driver = ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else "libcuda.so.1")
def table(identifier):
    entry = ctypes.c_void_p()
    assert driver.cuGetExportTable(ctypes.byref(entry), bytes.fromhex(identifier)) == 0
    return entry.value
devices = []
if driver.cuInit(0) == 0:
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    for device in range(count.value):
        uuid = (ctypes.c_ubyte * 16)()
        driver.cuDeviceGetUuid_v2(uuid, device)
        place = []
        for attribute in (50, 33, 34):  # PCI domain, bus, device
            value = ctypes.c_int()
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            place.append(value.value)
        devices.append([bytes(uuid).hex(), *place])
version = ctypes.c_int()
driver.cuDriverGetVersion(ctypes.byref(version))
runtime = table("6bd5fb6c5bf4e74a8987d93912fd9df9")
handshake = table("d4082055bde6704b8d34ba123c66e1f2")
function = ctypes.cast(handshake, ctypes.POINTER(ctypes.c_void_p))[1]
answers = {}
for asked in (12090, 12091, 12092, 13005):
    out = (ctypes.c_uint64 * 2)()
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p)
    call = kind(function)
    assert call(asked, 1700000000, ctypes.addressof(out)) == 0
    answers[asked] = list(out)
print(json.dumps({
    "driver": version.value, "pid": os.getpid(), "thread": threading.get_ident() & 0xffffffff,
    "runtime": runtime, "handshake": handshake, "function": function, "devices": devices,
    "answers": answers}))
"""


def check(printed: str) -> Any:
    """Recomputes every answer; what was printed, decoded."""
    hmac = pytest.importorskip("Crypto.Hash.HMAC", reason="pycryptodome is not installed")
    md2 = pytest.importorskip("Crypto.Hash.MD2", reason="pycryptodome is not installed")
    told = json.loads(printed)
    for asked, answer in told["answers"].items():
        version = int(asked)
        message = struct.pack(
            "<IIIIQQQQ", told["driver"], version, told["pid"], told["thread"], told["runtime"],
            told["handshake"], told["function"], 1_700_000_000,
        )  # fmt: skip
        for uuid, domain, bus, device in told["devices"]:
            message += bytes.fromhex(uuid) + struct.pack("<iii", domain, bus, device)
        digest = hmac.new(KEY, message, digestmod=md2).digest()
        assert tuple(answer) == FIXED.get(version % 10, struct.unpack("<QQ", digest)), asked
    return told


def test_without_a_host_it_covers_no_device() -> None:
    assert check(run_without_host(ASK))["devices"] == []


def test_it_covers_the_devices_that_the_program_sees(host: Host, transport: str) -> None:
    assert len(check(host.run_python(transport, ASK))["devices"]) >= 1
