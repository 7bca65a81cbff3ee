"""Streams, events, stores and waits: what is ordered behind what."""

from __future__ import annotations

import ctypes
import threading
import time
from ctypes import byref, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p

import pytest

from tests.softgpu.driver import INVALID_VALUE, NOT_READY, Driver

HOST_FUNCTION = ctypes.CFUNCTYPE(None, c_void_p)
STREAM_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p)
LEGACY, PER_THREAD = 1, 2
NON_BLOCKING = 1


def write(driver: Driver, stream: int, address: int, value: int) -> None:
    driver.cuStreamWriteValue32_v2(c_void_p(stream), c_uint64(address), c_uint(value), c_uint(0))


def wait(driver: Driver, stream: int, address: int, value: int, condition: int = 0) -> None:
    driver.cuStreamWaitValue32_v2(
        c_void_p(stream), c_uint64(address), c_uint(value), c_uint(condition)
    )


def word(driver: Driver) -> tuple[int, ctypes.c_uint32]:
    """A word of pinned memory, by address and as a variable."""
    host = c_void_p()
    driver.cuMemHostAlloc(byref(host), c_size_t(64), c_uint(0))
    assert host.value
    return host.value, ctypes.c_uint32.from_address(host.value)


def stream(driver: Driver, flags: int = 0) -> int:
    return driver.handle("cuStreamCreate", c_uint(flags))


def query(driver: Driver, which: int) -> int:
    result: int = driver.result.cuStreamQuery(c_void_p(which))
    return result


@pytest.mark.parametrize("which", [0, LEGACY, PER_THREAD, None])
def test_a_store_arrives_in_order(driver: Driver, which: int | None) -> None:
    address, value = word(driver)
    on = stream(driver) if which is None else which
    for number in range(1, 200):
        write(driver, on, address, number)
    driver.cuStreamSynchronize(c_void_p(on))
    assert value.value == 199


def test_a_stream_waits_for_memory_and_others_go_on(driver: Driver) -> None:
    gate, value = word(driver)
    result, seen = word(driver)
    waiting, other = stream(driver, NON_BLOCKING), stream(driver, NON_BLOCKING)
    wait(driver, waiting, gate, 5)
    write(driver, waiting, result, 1)
    driver.cuStreamSynchronize(c_void_p(other))
    assert query(driver, waiting) == NOT_READY
    assert seen.value == 0
    value.value = 4
    time.sleep(0.02)
    assert query(driver, waiting) == NOT_READY
    value.value = 6  # greater or equal
    driver.cuStreamSynchronize(c_void_p(waiting))
    assert seen.value == 1


@pytest.mark.parametrize(("condition", "no", "yes"), [(1, 6, 5), (2, 2, 4), (3, 0xFFFFFFFF, 0)])
def test_wait_conditions(driver: Driver, condition: int, no: int, yes: int) -> None:
    gate, value = word(driver)
    value.value = no
    on = stream(driver, NON_BLOCKING)
    wait(driver, on, gate, 5 if condition != 3 else 1, condition)
    time.sleep(0.01)
    assert query(driver, on) == NOT_READY
    value.value = yes
    driver.cuStreamSynchronize(c_void_p(on))


def test_words_must_be_known_and_aligned(driver: Driver) -> None:
    address = driver.allocate(64)
    for bad in (address + 2, 0x1000, address + 4096):
        result = driver.result.cuStreamWriteValue32_v2(
            c_void_p(0), c_uint64(bad), c_uint(1), c_uint(0)
        )
        assert result == INVALID_VALUE
    result = driver.result.cuStreamWriteValue64_v2(
        c_void_p(0), c_uint64(address + 4), c_uint64(1), c_uint(0)
    )
    assert result == INVALID_VALUE


def test_the_legacy_stream_waits_for_blocking_streams_and_they_for_it(driver: Driver) -> None:
    gate, value = word(driver)
    order, seen = word(driver)
    blocking, free = stream(driver), stream(driver, NON_BLOCKING)
    wait(driver, blocking, gate, 1)
    write(driver, 0, order, 1)  # behind the blocking stream
    assert query(driver, 0) == NOT_READY
    third = stream(driver)
    write(driver, third, order, 2)  # behind the legacy stream
    write(driver, free, order + 4, 9)  # behind nothing
    driver.cuStreamSynchronize(c_void_p(free))
    assert (seen.value, ctypes.c_uint32.from_address(order + 4).value) == (0, 9)
    value.value = 1
    driver.cuStreamSynchronize(c_void_p(third))
    assert seen.value == 2


def test_an_event_orders_two_streams(driver: Driver) -> None:
    gate, value = word(driver)
    result, seen = word(driver)
    first, second = stream(driver, NON_BLOCKING), stream(driver, NON_BLOCKING)
    event = driver.handle("cuEventCreate", c_uint(0))
    driver.cuEventSynchronize(c_void_p(event))  # never recorded: complete
    wait(driver, first, gate, 1)
    driver.cuEventRecord(c_void_p(event), c_void_p(first))
    driver.cuStreamWaitEvent(c_void_p(second), c_void_p(event), c_uint(0))
    write(driver, second, result, 3)
    time.sleep(0.01)
    assert seen.value == 0
    assert driver.result.cuEventQuery(c_void_p(event)) == NOT_READY
    value.value = 1
    driver.cuStreamSynchronize(c_void_p(second))
    assert seen.value == 3
    assert driver.result.cuEventQuery(c_void_p(event)) == 0


def test_elapsed_time(driver: Driver) -> None:
    start, end, untimed = (driver.handle("cuEventCreate", c_uint(flags)) for flags in (0, 0, 2))
    milliseconds = c_float()
    elapsed = driver.result.cuEventElapsedTime
    assert elapsed(byref(milliseconds), c_void_p(start), c_void_p(end)) == 400
    driver.cuEventRecord(c_void_p(start), c_void_p(0))
    driver.cuCtxSynchronize()
    time.sleep(0.05)
    for event in (end, untimed):
        driver.cuEventRecord(c_void_p(event), c_void_p(0))
    driver.cuEventSynchronize(c_void_p(end))
    driver.cuEventElapsedTime(byref(milliseconds), c_void_p(start), c_void_p(end))
    assert 50 <= milliseconds.value < 5000
    assert elapsed(byref(milliseconds), c_void_p(start), c_void_p(untimed)) == 400


def test_host_functions_and_callbacks_run_in_order(driver: Driver) -> None:
    seen: list[object] = []
    function = HOST_FUNCTION(lambda data: seen.append(data))
    callback = STREAM_CALLBACK(lambda _stream, status, data: seen.append((status, data)))
    on = stream(driver)
    for i in range(1, 4):
        driver.cuLaunchHostFunc(c_void_p(on), function, c_void_p(i))
    driver.cuStreamAddCallback(c_void_p(on), callback, c_void_p(9), c_uint(0))
    driver.cuStreamSynchronize(c_void_p(on))
    assert seen == [1, 2, 3, (0, 9)]


def test_destroying_a_stream_lets_its_work_finish(driver: Driver) -> None:
    gate, value = word(driver)
    result, seen = word(driver)
    on = stream(driver)
    wait(driver, on, gate, 1)
    write(driver, on, result, 1)
    driver.cuStreamDestroy_v2(c_void_p(on))
    assert driver.result.cuStreamSynchronize(c_void_p(on)) == 400
    value.value = 1
    driver.cuCtxSynchronize()
    assert seen.value == 1


def test_what_a_stream_says_of_itself(driver: Driver) -> None:
    on = driver.handle("cuStreamCreateWithPriority", c_uint(NON_BLOCKING), -99)
    priority, flags, identity, other = c_int(), c_uint(), c_uint64(), c_uint64()
    driver.cuStreamGetPriority(c_void_p(on), byref(priority))
    driver.cuStreamGetFlags(c_void_p(on), byref(flags))
    driver.cuStreamGetId(c_void_p(on), byref(identity))
    driver.cuStreamGetId(c_void_p(0), byref(other))
    assert (priority.value, flags.value) == (-5, NON_BLOCKING)
    assert identity.value != other.value
    context, current = c_void_p(), c_void_p()
    driver.cuStreamGetCtx(c_void_p(on), byref(context))
    driver.cuCtxGetCurrent(byref(current))
    assert context.value == current.value


def test_threads_use_streams_at_the_same_time(driver: Driver) -> None:
    context = c_void_p()
    driver.cuCtxGetCurrent(byref(context))
    failures: list[str] = []

    def work(number: int) -> None:
        try:
            driver.cuCtxSetCurrent(context)
            on = stream(driver, number % 2)
            address = driver.allocate(4 * 64)
            for round_ in range(50):
                driver.cuMemsetD32Async(
                    c_uint64(address), c_uint(number * 1000 + round_), c_size_t(64), c_void_p(on)
                )
                if round_ % 10 == 0:
                    driver.cuStreamSynchronize(c_void_p(on))
            driver.cuStreamSynchronize(c_void_p(on))
            data = driver.download(address, 256)
            if data != (number * 1000 + 49).to_bytes(4, "little") * 64:
                failures.append(f"thread {number}")
            driver.cuMemFree_v2(c_uint64(address))
            driver.cuStreamDestroy_v2(c_void_p(on))
        except Exception as error:  # a thread's failure must reach the test
            failures.append(repr(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


def test_destroying_a_context_ends_a_wait_that_nobody_will_answer(process_driver: Driver) -> None:
    driver = process_driver
    context = driver.handle("cuCtxCreate_v2", c_uint(0), 0)
    gate, _ = word(driver)
    wait(driver, stream(driver), gate, 1)
    driver.cuCtxDestroy_v2(c_void_p(context))
