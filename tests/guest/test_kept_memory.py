"""Freed device memory that the client keeps for its next allocation: nobody may notice but by the
clock.
"""

from __future__ import annotations

import pytest

from tests.conftest import Host
from tests.guest.stream_program import PRELUDE

PROGRAM = (
    PRELUDE
    + """
from gpupool.guest import counters
def asked(name):
    return counters.read()["waits"].get(name, 0)
def plain(size, s=None):
    address = c_uint64()
    ok(driver.cuMemAlloc_v2(byref(address), c_size_t(size)), "cuMemAlloc")
    return address
def pooled(size, s):
    address = c_uint64()
    ok(driver.cuMemAllocAsync(byref(address), c_size_t(size), s), "cuMemAllocAsync")
    return address
def free(address, s=None):
    ok(driver.cuMemFreeAsync(address, s) if s else driver.cuMemFree_v2(address), "free")
def available():
    free, total = c_size_t(), c_size_t()
    ok(driver.cuMemGetInfo_v2(byref(free), byref(total)))
    return free.value
work = stream()
"""
)


def test_a_loop_asks_once(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PROGRAM
        + """
for make, s, name in ((plain, None, "cuMemAlloc_v2"), (pooled, work, "cuMemAllocAsync")):
    free(make(1 << 20, s), s)
    before = asked(name)
    for size in [1 << 20, 3 << 20, 512] * 20:
        free(make(size, s), s)
    same(asked(name) - before, 2, name)
""",
    )


def test_answers_are_those_of_freed_memory(host: Host, transport: str) -> None:
    """Whatever asks the worker finds the memory freed."""
    host.run_python(
        transport,
        PROGRAM
        + """
default = c_void_p()
ok(driver.cuDeviceGetDefaultMemPool(byref(default), 0))
for size in (8 << 20, 40 << 20):  # what the driver takes for itself at the first use
    free(plain(size))
    free(pooled(size, work), work)
ok(driver.cuStreamSynchronize(work))
ok(driver.cuMemPoolTrimTo(default, c_size_t(0)))
before = available()
for make, s in ((plain, None), (pooled, work)):
    block = make(40 << 20, s)
    free(block, s)
    ok(driver.cuStreamSynchronize(work))
    same(driver.cuMemFree_v2(block), INVALID_VALUE, "freed twice")
    assert driver.cuMemFreeAsync(block, work) != 0, "freed twice, in order"
base, size, kind = c_uint64(), c_size_t(), c_uint()
block = plain(40 << 20)
free(block)
assert driver.cuMemGetAddressRange_v2(byref(base), byref(size), block) != 0, "range"
block = plain(40 << 20)
free(block)
same(driver.cuPointerGetAttribute(byref(kind), 2, block), INVALID_VALUE, "attribute")
blocks = [plain(8 << 20) for _ in range(4)]
for block in blocks:
    free(block)
ok(driver.cuCtxSynchronize())
ok(driver.cuMemPoolTrimTo(default, c_size_t(0)))
same(available(), before)
""",
    )


@pytest.mark.softgpu
def test_out_of_memory_only_without_it(host: Host, transport: str) -> None:
    """The software GPU's memory has no fragments: what is free can be had in one piece."""
    host.run_python(
        transport,
        PROGRAM
        + """
room = available()
for make, s in ((plain, None), (pooled, work)):
    free(make(48 << 20, s), s)
    free(plain(room - (1 << 20)))
address = c_uint64()
same(driver.cuMemAlloc_v2(byref(address), c_size_t(room * 2)), 2, "too much")
same(available(), room, "room")
""",
    )


def test_earlier_work_does_not_reach_the_next_owner(host: Host, transport: str) -> None:
    """cuMemFree would wait for all work; memory that is kept comes back after it."""
    host.run_python(
        transport,
        PROGRAM
        + """
block = plain(1 << 20)
hold(work)
ok(driver.cuMemsetD32Async(block, 7, c_size_t(1 << 18), work))
free(block)
late = threading.Timer(0.3, let_go)
late.start()
again = plain(1 << 20)
other = stream()
ok(driver.cuMemsetD32Async(again, 9, c_size_t(1 << 18), other))
ok(driver.cuStreamSynchronize(other))
ok(driver.cuStreamSynchronize(work))
late.join()
same(read(again), 9)
""",
    )


def test_memory_of_a_stream_stays_on_it(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PROGRAM
        + """
other = stream()
block = pooled(1 << 20, work)
hold(work)
ok(driver.cuMemsetD32Async(block, 7, c_size_t(1 << 18), work))
free(block, work)
elsewhere = pooled(1 << 20, other)  # at once, from the driver
assert elsewhere.value != block.value
ok(driver.cuMemsetD32Async(elsewhere, 9, c_size_t(1 << 18), other))
ok(driver.cuStreamSynchronize(other))
let_go()
ok(driver.cuStreamSynchronize(work))
same(read(elsewhere), 9)
free(elsewhere, other)
# What is kept of a stream goes with it, and does not reach another that may get its handle.
ok(driver.cuStreamDestroy_v2(work))
ok(driver.cuStreamDestroy_v2(other))
third = stream()
before = asked("cuMemAllocAsync")
free(pooled(1 << 20, third), third)
same(asked("cuMemAllocAsync"), before + 1)
ok(driver.cuCtxSynchronize())
""",
    )


def test_not_inside_a_capture(host: Host, transport: str) -> None:
    """A captured allocation is a node, and so is what frees it; a stream may begin to capture while
    memory of it is kept.
    """
    host.run_python(
        transport,
        PROGRAM
        + """
free(pooled(1 << 20, work), work)
ok(driver.cuStreamBeginCapture_v2(work, RELAXED))
block = pooled(1 << 20, work)
ok(driver.cuMemsetD32Async(block, 5, c_size_t(4), work))
available()  # gives back what is kept, beside the capture
free(plain(1 << 20))
free(plain(1 << 20))
free(block, work)
result, graph = end(work)
ok(result)
count = c_size_t()
ok(driver.cuGraphGetNodes(c_void_p(graph), None, byref(count)))
same(count.value, 3, "an allocation, a memset, a free")
executable = instantiate(c_void_p(graph))
for _ in range(3):
    ok(driver.cuGraphLaunch(executable, work))
ok(driver.cuStreamSynchronize(work))
""",
    )


def test_what_another_process_may_hold_is_not_kept(host: Host) -> None:
    host.run_python(
        "shm",
        PROGRAM
        + """
block = plain(2 << 20)
handle = (ctypes.c_char * 64)()
ok(driver.cuIpcGetMemHandle(handle, block))
free(block)
before = asked("cuMemAlloc_v2")
free(plain(2 << 20))
same(asked("cuMemAlloc_v2"), before + 1)
""",
    )
