"""A launch that faults loses its context, and nothing else."""

from __future__ import annotations

from ctypes import byref, c_size_t, c_uint, c_uint64, c_void_p

import pytest

from tests.softgpu.driver import COUNTER, HEADER, SCALE, Driver, DriverError
from tests.softgpu.test_stream import HOST_FUNCTION, STREAM_CALLBACK, word, write

ILLEGAL_ADDRESS = 700
TRAP = HEADER + ".visible .entry boom() { trap; ret; }"


def scale(driver: Driver, out: int, source: int) -> None:
    function = driver.function(driver.module(SCALE), "scale")
    driver.launch(function, 1, 32, c_uint64(out), c_uint64(source), c_uint(1), c_uint(32))


@pytest.mark.parametrize("bad", ["null", "freed", "host", "past the end"])
def test_touching_what_is_not_the_devices_is_an_illegal_address(
    driver: Driver, bad: str, capfd: pytest.CaptureFixture[str]
) -> None:
    good = driver.allocate(128)
    freed = driver.allocate(128)
    driver.cuMemFree_v2(c_uint64(freed))
    local = c_uint64()
    address = {"null": 0, "freed": freed, "host": id(local), "past the end": good + 64}[bad]
    scale(driver, address, good)
    with pytest.raises(DriverError) as caught:
        driver.cuCtxSynchronize()
    assert caught.value.result == ILLEGAL_ADDRESS
    assert "scale" in capfd.readouterr().err


def test_the_fault_stays(driver: Driver) -> None:
    good = driver.allocate(128)
    module = driver.module(COUNTER)
    word_address, value = word(driver)
    scale(driver, 0, good)
    seen: list[int] = []
    function = HOST_FUNCTION(lambda _data: seen.append(-1))
    callback = STREAM_CALLBACK(lambda _stream, status, _data: seen.append(status))
    for _ in range(1000):  # until the launch has run, calls go through
        if driver.result.cuLaunchHostFunc(c_void_p(0), function, c_void_p(0)) != 0:
            break
        driver.result.cuStreamAddCallback(c_void_p(0), callback, c_void_p(0), c_uint(0))
        driver.result.cuStreamWriteValue32_v2(
            c_void_p(0), c_uint64(word_address), c_uint(1), c_uint(0)
        )
    assert driver.result.cuCtxSynchronize() == ILLEGAL_ADDRESS
    out = c_uint64()
    assert driver.result.cuMemAlloc_v2(byref(out), c_size_t(4)) == ILLEGAL_ADDRESS
    assert driver.result.cuStreamQuery(c_void_p(0)) == ILLEGAL_ADDRESS
    assert (
        driver.result.cuModuleGetFunction(byref(out), c_void_p(module), b"bump") == ILLEGAL_ADDRESS
    )
    assert driver.result.cuMemcpyHtoD_v2(c_uint64(good), b"abcd", c_size_t(4)) == ILLEGAL_ADDRESS
    assert -1 not in seen
    assert set(seen) <= {ILLEGAL_ADDRESS}
    assert value.value == 0


def test_a_trap_is_a_launch_failure_and_other_contexts_go_on(driver: Driver) -> None:
    lost = driver.handle("cuCtxCreate_v2", c_uint(0), 0)
    driver.launch(driver.function(driver.module(TRAP), "boom"), 1, 1)
    assert driver.result.cuCtxSynchronize() == 719
    driver.cuCtxDestroy_v2(c_void_p(lost))
    address, value = word(driver)
    write(driver, 0, address, 3)
    driver.cuCtxSynchronize()
    assert value.value == 3


def test_resetting_the_primary_context_heals_it(process_driver: Driver) -> None:
    driver = process_driver
    context = driver.handle("cuDevicePrimaryCtxRetain", 0)
    driver.cuCtxPushCurrent_v2(c_void_p(context))
    driver.launch(driver.function(driver.module(TRAP), "boom"), 1, 1)
    assert driver.result.cuCtxSynchronize() == 719
    driver.cuDevicePrimaryCtxReset_v2(0)
    address = driver.upload(b"again")
    assert driver.download(address, 5) == b"again"
    driver.cuCtxPopCurrent_v2(None)
    driver.cuDevicePrimaryCtxRelease_v2(0)
