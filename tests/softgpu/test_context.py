"""Contexts: the stack, the primary one, what is set on them, and what goes with them."""

from __future__ import annotations

import mmap
import threading
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path

from tests.softgpu.driver import Driver

INVALID_CONTEXT, CONTEXT_IS_DESTROYED = 201, 709


def current(driver: Driver) -> int | None:
    context = c_void_p()
    driver.cuCtxGetCurrent(byref(context))
    return context.value


def state(driver: Driver) -> tuple[int, int]:
    flags, active = c_uint(), c_int()
    driver.cuDevicePrimaryCtxGetState(0, byref(flags), byref(active))
    return flags.value, active.value


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * mmap.PAGESIZE


def test_the_stack(driver: Driver) -> None:
    base = current(driver)
    top = driver.handle("cuCtxCreate_v2", c_uint(0), 0)
    assert current(driver) == top
    popped = c_void_p()
    driver.cuCtxPopCurrent_v2(byref(popped))
    assert (popped.value, current(driver)) == (top, base)
    driver.cuCtxPushCurrent_v2(c_void_p(top))
    driver.cuCtxDestroy_v2(c_void_p(top))
    assert current(driver) == base
    assert driver.result.cuCtxPushCurrent_v2(c_void_p(top)) == INVALID_CONTEXT


def test_a_new_thread_has_no_context(driver: Driver) -> None:
    results: list[int] = []

    def look() -> None:
        out = c_uint64()
        results.append(driver.result.cuMemAlloc_v2(byref(out), c_size_t(4)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(10)
    assert results == [INVALID_CONTEXT]


def test_a_context_destroyed_elsewhere(driver: Driver) -> None:
    base = c_void_p(current(driver))
    lost = driver.handle("cuCtxCreate_v2", c_uint(0), 0)
    destroyer = threading.Thread(target=lambda: driver.cuCtxDestroy_v2(c_void_p(lost)))
    destroyer.start()
    destroyer.join(10)
    assert driver.result.cuCtxSynchronize() == CONTEXT_IS_DESTROYED
    driver.cuCtxSetCurrent(base)
    driver.cuCtxSynchronize()


def test_the_primary_context_is_counted(process_driver: Driver) -> None:
    driver = process_driver
    assert state(driver)[1] == 0
    first = driver.handle("cuDevicePrimaryCtxRetain", 0)
    assert driver.handle("cuDevicePrimaryCtxRetain", 0) == first
    driver.cuDevicePrimaryCtxRelease_v2(0)
    assert state(driver)[1] == 1
    driver.cuDevicePrimaryCtxRelease_v2(0)
    assert state(driver)[1] == 0
    assert driver.result.cuDevicePrimaryCtxRelease_v2(0) == INVALID_CONTEXT
    assert driver.result.cuCtxDestroy_v2(c_void_p(first)) == INVALID_CONTEXT


def test_destroying_frees_what_was_made(process_driver: Driver) -> None:
    driver = process_driver
    before, total = c_size_t(), c_size_t()
    outer = driver.handle("cuCtxCreate_v2", c_uint(0), 0)
    driver.cuMemGetInfo_v2(byref(before), byref(total))
    inner = driver.handle("cuCtxCreate_v2", c_uint(0), 0)
    driver.allocate(10 << 20)
    stream = driver.handle("cuStreamCreate", c_uint(0))
    event = driver.handle("cuEventCreate", c_uint(0))
    driver.cuCtxDestroy_v2(c_void_p(inner))
    after = c_size_t()
    driver.cuMemGetInfo_v2(byref(after), byref(total))
    assert after.value == before.value
    assert driver.result.cuStreamQuery(c_void_p(stream)) == 400
    assert driver.result.cuEventQuery(c_void_p(event)) == 400
    driver.cuCtxDestroy_v2(c_void_p(outer))


def test_nothing_stays_of_destroyed_contexts(process_driver: Driver) -> None:
    driver = process_driver

    def grown(rounds: int) -> int:
        before = resident_bytes()
        for _ in range(rounds):
            one = driver.handle("cuCtxCreate_v2", c_uint(0), 0)
            driver.cuMemsetD8Async(c_uint64(memory), 0, c_size_t(1), None)  # on its own stream
            driver.cuCtxDestroy_v2(c_void_p(one))
        return resident_bytes() - before

    outer = driver.handle("cuCtxCreate_v2", c_uint(0), 0)
    memory = driver.allocate(512)
    grown(500)
    assert grown(2000) < 1 << 20
    driver.cuCtxDestroy_v2(c_void_p(outer))


def test_limits_flags_and_versions(driver: Driver) -> None:
    value = c_size_t()
    driver.cuCtxSetLimit(0, c_size_t(4096))
    driver.cuCtxGetLimit(byref(value), 0)
    assert value.value == 4096
    assert driver.result.cuCtxGetLimit(byref(value), 99) == 1
    flags, version, identity = c_uint(), c_uint(), c_uint64()
    driver.cuCtxGetFlags(byref(flags))
    driver.cuCtxGetApiVersion(c_void_p(0), byref(version))
    driver.cuCtxGetId(c_void_p(0), byref(identity))
    assert (flags.value, version.value) == (0, 3020)
    assert identity.value > 0
    least, greatest = c_int(), c_int()
    driver.cuCtxGetStreamPriorityRange(byref(least), byref(greatest))
    assert (least.value, greatest.value) == (0, -5)
