"""Virtual memory management: addresses first, memory later."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from pathlib import Path

from tests.softgpu.driver import INVALID_VALUE, OUT_OF_MEMORY, SCALE, Driver

MIB2 = 2 << 20
HINT = 0x3000_0000_0000
ROOT = Path(__file__).parent.parent.parent


class Properties(ctypes.Structure):
    """CUmemAllocationProp of cuda.h, for pinned memory of device 0."""

    _fields_ = [
        ("type", c_int),
        ("handles", c_int),
        ("location_type", c_int),
        ("location_id", c_int),
        ("windows", c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    ]


class Access(ctypes.Structure):
    """CUmemAccessDesc of cuda.h."""

    _fields_ = [("location_type", c_int), ("location_id", c_int), ("flags", c_int)]


def properties(exportable: bool = False) -> Properties:
    return Properties(1, 1 if exportable else 0, 1, 0)


def reserve(driver: Driver, size: int, wanted: int = 0) -> int:
    out = c_uint64()
    driver.cuMemAddressReserve(
        byref(out), c_size_t(size), c_size_t(0), c_uint64(wanted), c_ulonglong(0)
    )
    return out.value


def create(driver: Driver, size: int, exportable: bool = False) -> int:
    out = c_uint64()
    driver.cuMemCreate(byref(out), c_size_t(size), byref(properties(exportable)), c_ulonglong(0))
    return out.value


def map_memory(driver: Driver, address: int, size: int, handle: int) -> None:
    driver.cuMemMap(
        c_uint64(address), c_size_t(size), c_size_t(0), c_uint64(handle), c_ulonglong(0)
    )


def allow(driver: Driver, address: int, size: int) -> None:
    driver.cuMemSetAccess(c_uint64(address), c_size_t(size), byref(Access(1, 0, 3)), c_size_t(1))


def unmap(driver: Driver, address: int, size: int) -> None:
    driver.cuMemUnmap(c_uint64(address), c_size_t(size))


def fill(driver: Driver, address: int, value: int, size: int) -> int:
    result: int = driver.result.cuMemsetD8_v2(
        c_uint64(address), ctypes.c_ubyte(value), c_size_t(size)
    )
    return result


def test_granularity(driver: Driver) -> None:
    size = c_size_t()
    driver.cuMemGetAllocationGranularity(byref(size), byref(properties()), 0)
    assert size.value == MIB2


def test_the_address_asked_for_is_given_if_it_is_free(driver: Driver) -> None:
    first = reserve(driver, 16 * MIB2, HINT)
    assert first == HINT
    second = reserve(driver, 16 * MIB2, HINT)
    assert second != HINT
    for address in (first, second):
        driver.cuMemAddressFree(c_uint64(address), c_size_t(16 * MIB2))
    assert reserve(driver, MIB2, HINT) == HINT
    driver.cuMemAddressFree(c_uint64(HINT), c_size_t(MIB2))
    large = reserve(driver, 1 << 40, HINT)
    assert large == HINT
    driver.cuMemAddressFree(c_uint64(large), c_size_t(1 << 40))


def test_memory_moves_between_addresses_and_keeps_its_content(driver: Driver) -> None:
    base = reserve(driver, 4 * MIB2)
    handle = create(driver, MIB2)
    map_memory(driver, base, MIB2, handle)
    assert fill(driver, base, 1, 16) == INVALID_VALUE  # nobody may use it yet
    allow(driver, base, MIB2)
    assert driver.download(base, 64) == bytes(64)
    assert fill(driver, base, 7, MIB2) == 0
    map_memory(driver, base + 2 * MIB2, MIB2, handle)
    allow(driver, base + 2 * MIB2, MIB2)
    assert driver.download(base + 2 * MIB2, 64) == b"\x07" * 64
    unmap(driver, base, MIB2)
    assert fill(driver, base, 1, 16) == INVALID_VALUE
    driver.cuMemRelease(c_uint64(handle))
    assert driver.download(base + 3 * MIB2 - 8, 8) == b"\x07" * 8
    unmap(driver, base + 2 * MIB2, MIB2)
    fresh = create(driver, MIB2)
    map_memory(driver, base, MIB2, fresh)
    allow(driver, base, MIB2)
    assert driver.download(base, MIB2) == bytes(MIB2)  # what others left is gone
    unmap(driver, base, MIB2)
    driver.cuMemRelease(c_uint64(fresh))
    driver.cuMemAddressFree(c_uint64(base), c_size_t(4 * MIB2))


def test_copies_and_kernels_cross_the_border_between_chunks(driver: Driver) -> None:
    base = reserve(driver, 2 * MIB2)
    handles = [create(driver, MIB2) for _ in range(2)]
    for i, handle in enumerate(handles):
        map_memory(driver, base + i * MIB2, MIB2, handle)
    allow(driver, base, 2 * MIB2)
    function = driver.function(driver.module(SCALE), "scale")
    n = 2 * MIB2 // 4
    driver.launch(function, n // 256, 256, c_uint64(base), c_uint64(base), c_uint(1), c_uint(n))
    data = driver.download(base + MIB2 - 4, 8)
    assert data == (n // 2 - 1).to_bytes(4, "little") + (n // 2).to_bytes(4, "little")
    flags = c_ulonglong()
    location = (c_int * 2)(1, 0)
    driver.cuMemGetAccess(byref(flags), location, c_uint64(base))
    assert flags.value == 3
    unmap(driver, base, 2 * MIB2)
    for handle in handles:
        driver.cuMemRelease(c_uint64(handle))
    driver.cuMemAddressFree(c_uint64(base), c_size_t(2 * MIB2))


def test_what_is_not_right_is_refused(driver: Driver) -> None:
    base = reserve(driver, 2 * MIB2)
    handle = create(driver, MIB2)
    bad_map = driver.result.cuMemMap
    nothing = (c_size_t(0), c_uint64(handle), c_ulonglong(0))
    assert bad_map(c_uint64(base + 4096), c_size_t(MIB2), *nothing) == INVALID_VALUE
    assert bad_map(c_uint64(base), c_size_t(2 * MIB2), *nothing) == INVALID_VALUE
    assert bad_map(c_uint64(base + 2 * MIB2), c_size_t(MIB2), *nothing) == INVALID_VALUE
    map_memory(driver, base, MIB2, handle)
    assert bad_map(c_uint64(base), c_size_t(MIB2), *nothing) == INVALID_VALUE
    free = driver.result.cuMemAddressFree
    assert free(c_uint64(base), c_size_t(2 * MIB2)) == INVALID_VALUE  # something is mapped
    unmap(driver, base, MIB2)
    assert driver.result.cuMemUnmap(c_uint64(base), c_size_t(MIB2)) == INVALID_VALUE
    driver.cuMemRelease(c_uint64(handle))
    assert driver.result.cuMemRelease(c_uint64(handle)) == INVALID_VALUE
    assert free(c_uint64(base), c_size_t(2 * MIB2)) == 0
    out = c_uint64()
    too_large = (byref(out), c_size_t(1 << 40), byref(properties()), c_ulonglong(0))
    assert driver.result.cuMemCreate(*too_large) == OUT_OF_MEMORY


IMPORTER = """
import ctypes, socket, sys
from ctypes import byref, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from tests.softgpu.driver import Driver
from tests.softgpu.test_vmm import MIB2, allow, map_memory, reserve
d = Driver(sys.argv[1])
d.cuInit(0)
d.handle("cuCtxCreate_v2", c_uint(0), 0)
_, fds, _, _ = socket.recv_fds(socket.socket(fileno=int(sys.argv[2])), 1, 1)
handle = c_uint64()
d.cuMemImportFromShareableHandle(byref(handle), c_void_p(fds[0]), 1)
base = reserve(d, MIB2)
map_memory(d, base, MIB2, handle.value)
allow(d, base, MIB2)
print(d.download(base, 5).decode())
d.cuMemcpyHtoD_v2(c_uint64(base), b"reply", c_size_t(5))
"""


def test_another_process_imports_it(driver: Driver, library: Path) -> None:
    base = reserve(driver, MIB2)
    handle = create(driver, MIB2, exportable=True)
    map_memory(driver, base, MIB2, handle)
    allow(driver, base, MIB2)
    driver.cuMemcpyHtoD_v2(c_uint64(base), b"hello", c_size_t(5))
    file = c_int()
    driver.cuMemExportToShareableHandle(byref(file), c_uint64(handle), 1, c_ulonglong(0))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(ours, [b"x"], [file.value])
        os.close(file.value)
        done = subprocess.run(
            [sys.executable, "-c", IMPORTER, str(library), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello\n"
    assert driver.download(base, 5) == b"reply"
    unmap(driver, base, MIB2)
    driver.cuMemRelease(c_uint64(handle))
