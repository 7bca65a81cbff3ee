"""Stream-ordered memory."""

from __future__ import annotations

from ctypes import byref, c_size_t, c_uint64, c_void_p

from tests.softgpu.driver import INVALID_VALUE, NOT_READY, Driver
from tests.softgpu.test_stream import stream, wait, word

USED, USED_HIGH, THRESHOLD = 7, 8, 4


def attribute(driver: Driver, pool: int, which: int) -> int:
    value = c_uint64()
    driver.cuMemPoolGetAttribute(c_void_p(pool), which, byref(value))
    return value.value


def allocate(driver: Driver, size: int, on: int) -> int:
    out = c_uint64()
    driver.cuMemAllocAsync(byref(out), c_size_t(size), c_void_p(on))
    return out.value


def test_a_free_takes_effect_when_the_stream_gets_there(driver: Driver) -> None:
    pool = driver.handle("cuDeviceGetDefaultMemPool", 0)
    gate, value = word(driver)
    on = stream(driver, 1)
    address = allocate(driver, 1000, on)
    assert attribute(driver, pool, USED) == 1024
    wait(driver, on, gate, 1)
    driver.cuMemFreeAsync(c_uint64(address), c_void_p(on))
    assert driver.result.cuMemFreeAsync(c_uint64(address), c_void_p(on)) == INVALID_VALUE
    assert driver.result.cuStreamQuery(c_void_p(on)) == NOT_READY
    assert attribute(driver, pool, USED) == 1024
    driver.download(address, 1000)
    value.value = 1
    driver.cuStreamSynchronize(c_void_p(on))
    assert attribute(driver, pool, USED) == 0
    assert attribute(driver, pool, USED_HIGH) >= 1024


def test_a_free_that_is_queued_makes_room(driver: Driver) -> None:
    available, total = c_size_t(), c_size_t()
    driver.cuMemGetInfo_v2(byref(available), byref(total))
    size = available.value * 2 // 3
    on = stream(driver, 1)
    for _ in range(3):
        driver.cuMemFreeAsync(c_uint64(allocate(driver, size, on)), c_void_p(on))


def test_only_stream_ordered_memory_is_freed_so(driver: Driver) -> None:
    address = driver.allocate(64)
    assert driver.result.cuMemFreeAsync(c_uint64(address), c_void_p(0)) == INVALID_VALUE
    pooled = allocate(driver, 64, 0)
    driver.cuMemFree_v2(c_uint64(pooled))


def test_attributes_of_the_default_pool(driver: Driver) -> None:
    pool = driver.handle("cuDeviceGetDefaultMemPool", 0)
    assert driver.handle("cuDeviceGetMemPool", 0) == pool
    driver.cuMemPoolSetAttribute(c_void_p(pool), THRESHOLD, byref(c_uint64(1 << 30)))
    assert attribute(driver, pool, THRESHOLD) == 1 << 30
    driver.cuMemPoolTrimTo(c_void_p(pool), c_size_t(0))
    assert driver.result.cuMemPoolDestroy(c_void_p(pool)) == INVALID_VALUE
