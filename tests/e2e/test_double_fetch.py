"""A client that changes its window while the worker reads it. The worker copies once and checks the
copy (tests/cpp/test_worker_fetch.cpp holds it to that, byte by byte); here the real one runs
against a thread that flips bytes as fast as it can.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import Host
from tests.e2e.observe import ADD_ONCE

# Offsets in the window: wire/cpp/layout.hpp.
AREAS = {
    "slots": (0x10_0000, 0x30_0000),
    "answers": (0x30_0000, 0x30_0000 + 4096),  # of the first thread
    "data": (0x80_0000, 0x80_0000 + 0x2_0000),  # where staging begins: payloads, images, copies
    "words": (0x1_0000, 0x1_0000 + 64 * 16),
    "control": (0, 0x400),
}
SESSIONS = 2  # most end soon: the client corrupts its own messages

# Calls of all sorts for a second, beside a thread that flips bytes. Both ends may fail, in any
# orderly way.
PROGRAM = """
import random, threading, time
from tests.e2e.client import *
begin, end, seed = {begin}, {end}, {seed}
counter = Counter()
base = window_base()
stop = False
area = (ctypes.c_ubyte * (end - begin)).from_address(base + begin)
def flip():
    chance = random.Random(seed)
    tail = ctypes.c_uint64.from_address(base)
    while not stop:
        at = chance.randrange(end - begin)
        if (begin, end) == (0x100000, 0x300000):  # where the client writes
            near = (tail.value + chance.randrange(-1, 3)) % 8192
            at = near * 256 + chance.randrange(8, 256)
        before = area[at]
        area[at] = before ^ 1 << chance.randrange(8)
        if chance.randrange(2):
            area[at] = before
threading.Thread(target=flip, daemon=True).start()
until = time.monotonic() + 1
free, total = c_uint64(), c_uint64()
while time.monotonic() < until:
    counter.add()
    try:
        load_module(counter.driver, PTX)
        counter.driver.upload(counter.data, bytes(4000))
        counter.driver.download(counter.data, 4000)
    except AssertionError:
        pass
    if result(counter.driver, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total)) == 46:
        break
stop = True
"""


@pytest.mark.softgpu  # NVIDIA's driver is not asked to parse what nobody checked
@pytest.mark.parametrize("area", AREAS)
def test_window_that_changes_under_the_worker(own_host: Host, area: str) -> None:
    """Sessions end in an orderly way or go on: no worker crashes (`own_host` looks), none hangs."""
    begin, end = AREAS[area]
    for seed in range(SESSIONS):
        text = PROGRAM.format(begin=begin, end=end, seed=seed)
        client = own_host.start_client("shm", sys.executable, "-c", text)
        try:
            client.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            # It broke its own answers and waits for ever: the worker must still end with it.
            client.kill()
            client.communicate()
    own_host.wait_until(lambda: not own_host.sessions(), "all workers to end")
    assert "killed by signal" not in own_host.log
    assert own_host.run_python("shm", ADD_ONCE) == "1\n"
