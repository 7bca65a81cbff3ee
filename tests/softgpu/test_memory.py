"""Device memory, pinned memory, registered memory, and what is known about an address."""

from __future__ import annotations

import ctypes
import mmap
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.softgpu.driver import INVALID_VALUE, OUT_OF_MEMORY, Driver


def free(driver: Driver, address: int) -> None:
    driver.cuMemFree_v2(c_uint64(address))


def test_fresh_memory_reads_zero_even_where_others_wrote(driver: Driver) -> None:
    for size in (512, 5000, 3 << 20):
        address = driver.allocate(size)
        driver.cuMemsetD8_v2(c_uint64(address), ctypes.c_ubyte(0xAB), c_size_t(size))
        assert driver.download(address, size) == b"\xab" * size
        free(driver, address)
        again = driver.allocate(size)
        assert driver.download(again, size) == bytes(size)
        free(driver, again)


@given(st.lists(st.tuples(st.integers(1, 6 << 20), st.integers(0, 99)), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_allocations_never_overlap_and_keep_what_they_hold(
    process_driver: Driver, steps: list[tuple[int, int]]
) -> None:
    """Allocates, and after every third allocation frees one of those that live."""
    driver = process_driver
    context = driver.handle("cuCtxCreate_v2", c_uint(0), 0)
    try:
        live: dict[int, tuple[int, int]] = {}
        for number, (size, which) in enumerate(steps):
            address = driver.allocate(size)
            assert address % 512 == 0
            for other, held in live.items():
                assert address + size <= other or other + held[0] <= address
            driver.cuMemsetD8_v2(c_uint64(address), ctypes.c_ubyte(number % 251), c_size_t(size))
            live[address] = (size, number % 251)
            if number % 3 == 2:
                gone = sorted(live)[which % len(live)]
                free(driver, gone)
                del live[gone]
        for address, (size, value) in live.items():
            assert driver.download(address, size) == bytes([value]) * size
    finally:
        driver.cuCtxDestroy_v2(c_void_p(context))  # frees the rest


def test_large_allocations_are_aligned_for_huge_pages(driver: Driver) -> None:
    assert driver.allocate(1 << 20) % (2 << 20) == 0


def test_too_much_is_out_of_memory_and_zero_is_invalid(driver: Driver) -> None:
    out = c_uint64()
    assert driver.result.cuMemAlloc_v2(byref(out), c_size_t(1 << 45)) == OUT_OF_MEMORY
    assert driver.result.cuMemAlloc_v2(byref(out), c_size_t(0)) == INVALID_VALUE


def test_free_wants_the_start_of_something_live(driver: Driver) -> None:
    address = driver.allocate(4096)
    assert driver.result.cuMemFree_v2(c_uint64(address + 512)) == INVALID_VALUE
    assert driver.result.cuMemFree_v2(c_uint64(0x1234)) == INVALID_VALUE
    free(driver, address)
    assert driver.result.cuMemFree_v2(c_uint64(address)) == INVALID_VALUE
    free(driver, 0)


def test_the_range_around_an_address(driver: Driver) -> None:
    address = driver.allocate(10000)
    base, size = c_uint64(), c_size_t()
    driver.cuMemGetAddressRange_v2(byref(base), byref(size), c_uint64(address + 9999))
    assert (base.value, size.value) == (address, 10000)


def test_pitched_rows_are_aligned(driver: Driver) -> None:
    address, pitch = c_uint64(), c_size_t()
    driver.cuMemAllocPitch_v2(byref(address), byref(pitch), c_size_t(100), c_size_t(7), c_uint(4))
    assert pitch.value == 512


def test_pinned_memory_is_the_same_address_on_both_sides(driver: Driver) -> None:
    host = c_void_p()
    driver.cuMemHostAlloc(byref(host), c_size_t(8192), c_uint(2))
    assert host.value
    device = c_uint64()
    driver.cuMemHostGetDevicePointer_v2(byref(device), host, c_uint(0))
    assert device.value == host.value
    driver.cuMemsetD8_v2(device, ctypes.c_ubyte(7), c_size_t(8192))
    assert ctypes.string_at(host.value, 8192) == b"\x07" * 8192
    flags = c_uint()
    driver.cuMemHostGetFlags(byref(flags), host)
    assert flags.value & 2
    driver.cuMemFreeHost(host)
    assert driver.result.cuMemFreeHost(host) == INVALID_VALUE


def test_registering_memory_that_somebody_else_mapped(driver: Driver) -> None:
    window = mmap.mmap(-1, 1 << 20)
    view = (ctypes.c_char * (1 << 20)).from_buffer(window)
    address = ctypes.addressof(view)
    driver.cuMemHostRegister_v2(c_void_p(address), c_size_t(1 << 20), c_uint(3))
    again = driver.result.cuMemHostRegister_v2(c_void_p(address + 4096), c_size_t(4096), c_uint(3))
    assert again == 712
    source = driver.upload(b"data over there")
    driver.cuMemcpyDtoHAsync_v2(
        c_void_p(address + 100), c_uint64(source), c_size_t(15), c_void_p(0)
    )
    driver.cuCtxSynchronize()
    assert window[100:115] == b"data over there"
    driver.cuMemHostUnregister(c_void_p(address))
    assert driver.result.cuMemHostUnregister(c_void_p(address)) == 713
    del view


def test_registering_what_is_not_mapped_fails(driver: Driver) -> None:
    result = driver.result.cuMemHostRegister_v2(c_void_p(1 << 47), c_size_t(4096), c_uint(0))
    assert result == INVALID_VALUE


@pytest.mark.parametrize("kind", ["device", "host", "unknown"])
def test_pointer_attributes(driver: Driver, kind: str) -> None:
    host = c_void_p()
    driver.cuMemHostAlloc(byref(host), c_size_t(4096), c_uint(0))
    address = {"device": driver.allocate(4096), "host": host.value, "unknown": 0x1234}[kind]
    memory_type, ordinal, start, size = c_uint(99), c_int(99), c_uint64(99), c_size_t(99)
    wanted = (c_int * 4)(2, 9, 11, 12)
    outs = (c_void_p * 4)(*(ctypes.addressof(x) for x in (memory_type, ordinal, start, size)))
    driver.cuPointerGetAttributes(c_uint(4), wanted, outs, c_uint64((address or 0) + 8))
    single = driver.result.cuPointerGetAttribute(byref(memory_type), 2, c_uint64(address or 0))
    if kind == "unknown":
        assert single == INVALID_VALUE
        assert (memory_type.value, ordinal.value, start.value) == (0, -2, 0)
        return
    assert single == 0
    assert memory_type.value == (2 if kind == "device" else 1)
    assert (ordinal.value, start.value, size.value) == (0, address, 4096)
