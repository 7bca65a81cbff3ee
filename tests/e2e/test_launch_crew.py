"""Launches of several streams, issued by several threads of the worker: order and errors are as if
one thread did everything.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import Host

PROGRAM = r"""
import random, threading
from tests.guest.stream_program import PRELUDE
exec(PRELUDE)
# next(where, n): value = value * 3 + n, which tells in what order the kernels ran.
TEXT = b'''
.version 7.0
.target sm_70
.address_size 64
.visible .entry next(.param .u64 where, .param .u32 n)
{
  .reg .u64 %rd<3>;
  .reg .u32 %r<4>;
  ld.param.u64 %rd1, [where];
  ld.param.u32 %r1, [n];
  cvta.to.global.u64 %rd2, %rd1;
  ld.global.u32 %r2, [%rd2];
  mad.lo.u32 %r3, %r2, 3, %r1;
  st.global.u32 [%rd2], %r3;
  ret;
}
.visible .entry copy(.param .u64 to, .param .u64 from)
{
  .reg .u64 %rd<5>;
  .reg .u32 %r<2>;
  ld.param.u64 %rd1, [to];
  ld.param.u64 %rd2, [from];
  cvta.to.global.u64 %rd3, %rd1;
  cvta.to.global.u64 %rd4, %rd2;
  ld.global.u32 %r1, [%rd4];
  st.global.u32 [%rd3], %r1;
  ret;
}
'''
module = c_void_p()
ok(driver.cuModuleLoadData(byref(module), TEXT))
def function(name):
    found = c_void_p()
    ok(driver.cuModuleGetFunction(byref(found), module, name))
    return found
NEXT, COPY = function(b"next"), function(b"copy")
def run(what, s, a, b):
    values = (c_uint64(a), c_uint64(b))
    pointers = (c_void_p * 2)(*(ctypes.addressof(v) for v in values))
    return driver.cuLaunchKernel(what, 1, 1, 1, 1, 1, 1, 0, s, pointers, None)
def apply(value, n):
    return (value * 3 + n) & 0xffffffff
"""


def configure(host: Host, threads: int) -> None:
    """Workers that launch with so many threads on any machine."""
    host.stop()
    path = host.folder / "hostd.toml"
    text = path.read_text().replace("[limits]", f"[limits]\nlaunch_threads = {threads}", 1)
    path.write_text(text)
    host.start()


@pytest.fixture
def crew(own_host: Host) -> Host:
    """Three threads launch."""
    configure(own_host, 3)
    return own_host


def test_each_stream_keeps_its_order(crew: Host, transport: str) -> None:
    """Eight threads, a stream each: launches, memsets, copies, events, and now and then a wait."""
    crew.run_python(
        transport,
        PROGRAM
        + r"""
def work(index, failures):
    try:
        ok(driver.cuCtxSetCurrent(context))
        choose = random.Random(index)
        s, mine, e = stream(), alloc(4), event()
        pinned = c_void_p()
        ok(driver.cuMemHostAlloc(byref(pinned), 4, 0))
        value = 0
        for turn in range(600):
            what = choose.randrange(40)
            if what == 0:
                value = turn
                ok(driver.cuMemsetD32Async(mine, turn, c_size_t(1), s))
            elif what == 1:
                ok(driver.cuMemcpyDtoHAsync_v2(pinned, mine, c_size_t(4), s))
                ok(driver.cuStreamSynchronize(s))
                same(c_uint.from_address(pinned.value).value, value, f"thread {index} turn {turn}")
            elif what == 2:
                ok(driver.cuEventRecord(e, s))
                ok(driver.cuEventRecord(e, s))
                ok(driver.cuEventSynchronize(e))
            else:
                value = apply(value, turn)
                ok(run(NEXT, s, mine.value, turn))
        ok(driver.cuStreamSynchronize(s))
        same(read(mine), value, f"thread {index}")
    except BaseException as error:
        failures.append(error)
failures = []
threads = [threading.Thread(target=work, args=(i, failures)) for i in range(8)]
for each in threads: each.start()
for each in threads: each.join()
assert not failures, failures
""",
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_the_crew_works_when_it_is_wanted(own_host: Host, transport: str, threads: int) -> None:
    """The other tests of this file mean something: several streams do wake it."""
    configure(own_host, threads)
    client = own_host.start_client(
        transport,
        sys.executable,
        "-c",
        PROGRAM
        + r"""
streams, cell = [stream() for _ in range(4)], alloc(4)
for _ in range(2000):
    for s in streams:
        ok(run(kernel, s, cell.value, 1))
ok(driver.cuCtxSynchronize())
same(read(cell), 8000)
print("ran", flush=True)
input()
""",
    )
    assert client.stdout is not None
    line = client.stdout.readline()
    (session,) = own_host.sessions()
    tasks = Path(f"/proc/{session['worker_pid']}/task").glob("*/comm")
    found = [task.read_text().strip() for task in tasks].count("gpupool-launch")
    _, errors = client.communicate("\n", timeout=60)
    assert line == "ran\n", errors
    assert (found > 0) == (threads > 1)


def test_streams_wait_for_each_other(crew: Host, transport: str) -> None:
    """Through events, the legacy stream and calls that concern all streams."""
    crew.run_python(
        transport,
        PROGRAM
        + r"""
streams = [stream() for _ in range(6)]
blocking = [stream(0) for _ in range(3)]
cells = [alloc(4) for _ in range(6)]
values = [0] * 6
events = [event(2) for _ in range(6)]
legacy = alloc(4)
legacy_value = 0
choose = random.Random(5)
for turn in range(200):
    for _ in range(8):
        for i, s in enumerate(streams):
            values[i] = apply(values[i], turn)
            ok(run(NEXT, s, cells[i].value, turn))
    a, b = choose.sample(range(6), 2)
    # b takes what a has now, and not what a makes later
    ok(driver.cuEventRecord(events[a], streams[a]))
    ok(driver.cuStreamWaitEvent(streams[b], events[a], 0))
    ok(run(COPY, streams[b], cells[b].value, cells[a].value))
    values[b] = values[a]
    ok(driver.cuEventRecord(events[b], streams[b]))
    ok(driver.cuStreamWaitEvent(streams[a], events[b], 0))  # a may change it again
    for s in blocking:
        for n in range(3):
            legacy_value = apply(legacy_value, n)
            ok(run(NEXT, s, legacy.value, n))
        ok(run(NEXT, c_void_p(1), legacy.value, 9))  # after and before all blocking streams
        legacy_value = apply(legacy_value, 9)
ok(driver.cuCtxSynchronize())
same([read(cell) for cell in cells], values)
same(read(legacy), legacy_value)
""",
    )


def test_what_a_launch_needs_lives_until_it_is_issued(crew: Host, transport: str) -> None:
    """Streams, modules and contexts go right after the launches that use them."""
    crew.run_python(
        transport,
        PROGRAM
        + r"""
cell = alloc(4)
done = 0
for turn in range(20):
    mine = c_void_p()
    ok(driver.cuModuleLoadData(byref(mine), PTX))
    add = c_void_p()
    ok(driver.cuModuleGetFunction(byref(add), mine, b"add"))
    streams = [stream() for _ in range(4)]
    for _ in range(16):
        for s in streams:
            ok(run(add, s, cell.value, 1))
            done += 1
    for s in streams:
        ok(driver.cuStreamDestroy_v2(s))
    ok(driver.cuModuleUnload(mine))
    other = c_void_p()
    ok(driver.cuCtxCreate_v2(byref(other), 0, 0))
    second = c_void_p()
    ok(driver.cuModuleLoadData(byref(second), PTX))
    there = c_void_p()
    ok(driver.cuModuleGetFunction(byref(there), second, b"add"))
    elsewhere = alloc(4)
    streams = [stream() for _ in range(3)]
    for _ in range(16):
        for s in streams:
            ok(run(there, s, elsewhere.value, 1))
    ok(driver.cuCtxSynchronize())
    same(read(elsewhere), 48)
    ok(driver.cuCtxDestroy_v2(other))
    ok(driver.cuCtxSetCurrent(context))
ok(driver.cuCtxSynchronize())
same(read(cell), done)
""",
    )


def test_a_launch_that_fails_is_told(crew: Host, transport: str) -> None:
    """What only the driver refuses comes with the next call that waits, as from the dispatcher."""
    crew.run_python(
        transport,
        PROGRAM
        + r"""
streams = [stream() for _ in range(4)]
cell = alloc(4)
def bad(s):
    return run(NEXT, s, 8, 1)  # no memory there
for _ in range(10):
    for s in streams:
        ok(run(NEXT, s, cell.value, 1))
code = 0
for s in streams:
    code = code or bad(s)
for s in streams:
    code = code or driver.cuStreamSynchronize(s)
same(code, 700, "CUDA_ERROR_ILLEGAL_ADDRESS")
""",
    )
