"""Occupancy: the driver's answers, remembered until an attribute changes."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.test_module import run


def test_active_blocks(host: Host, transport: str) -> None:
    run(host, transport, """
module = load_module(d)
nothing = get_function(d, module, "nothing")
def active(block, shared=0, flags=0, function=nothing):
    blocks = c_int(-1)
    result = lib.cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        byref(blocks), function, block, c_size_t(shared), flags)
    return blocks.value if result == 0 else -result
assert active(32) > 0
equal(active(1024), active(1024))
assert active(64) >= active(1024)
equal(active(0), -1)
equal(active(-1), -1)
equal(active(32, flags=2), -1)
equal(active(1025), 0)
equal(active(32, 10**6), 0)
blocks = c_int()
d.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", byref(blocks), nothing, 256, c_size_t(0))
equal(blocks.value, active(256))
room = c_size_t()
d.call("cuOccupancyAvailableDynamicSMemPerBlock", byref(room), nothing, 2, 128)
assert room.value > 0
equal(lib.cuOccupancyAvailableDynamicSMemPerBlock(byref(room), nothing, 0, 128), INVALID_VALUE)
kernel = get_kernel(d, load_library(d), "nothing")
equal(active(256, function=kernel), active(256))
""")  # fmt: skip


def test_attributes_change_answers(host: Host, transport: str) -> None:
    """More dynamic shared memory than is allowed gives 0 until the function allows it."""
    run(host, transport, """
nothing = get_function(d, load_module(d), "nothing")
def active(shared):
    blocks = c_int(-1)
    name = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
    d.call(name, byref(blocks), nothing, 32, c_size_t(shared))
    return blocks.value
before = active(60000), active(60000)
equal(launch(d, nothing, shared=60000), INVALID_VALUE)
d.call("cuFuncSetAttribute", nothing, 8, 60000)
assert active(60000) >= 1
equal(launch(d, nothing, shared=60000), 0)
equal(before[0], before[1])
""")  # fmt: skip


def test_best_block_size(host: Host, transport: str) -> None:
    """The block size with the most threads a multiprocessor, found through the other questions."""
    run(host, transport, """
module = load_module(d)
nothing, small = get_function(d, module, "nothing"), get_function(d, module, "at_most_128")
def active(function, block, shared=0):
    blocks = c_int(-1)
    name = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
    d.call(name, byref(blocks), function, block, c_size_t(shared))
    return blocks.value
processors = c_int()
d.call("cuDeviceGetAttribute", byref(processors), 16, 0)
def best(function, limit=0, callback=None, shared=0):
    grid, block = c_int(), c_int()
    result = lib.cuOccupancyMaxPotentialBlockSize(
        byref(grid), byref(block), function, callback, c_size_t(shared), limit)
    return (grid.value, block.value) if result == 0 else -result
for function, limit in ((nothing, 0), (nothing, 100), (small, 0), (small, 64)):
    grid, block = best(function, limit)
    most = min([1024] + ([limit] if limit else []) + ([128] if function is small else []))
    assert 0 < block <= most, (block, most)
    equal(grid, active(function, block) * processors.value)
    threads = active(function, block) * block
    for other in list(range(32, most + 1, 32)) + [most]:
        assert active(function, other) * other <= threads, (other, block)
equal(best(nothing, -5), -1)
equal(best(nothing, shared=10**6), (0, 0))
Callback = ctypes.CFUNCTYPE(c_size_t, c_int)
asked = []
def needs(block):
    asked.append(block)
    return 48 * 1024 if block > 128 else 0
grid, block = best(nothing, callback=Callback(needs))
assert 1024 in asked
threads = max(active(nothing, b, needs(b)) * b for b in range(32, 1025, 32))
equal(active(nothing, block, needs(block)) * block, threads)
""")  # fmt: skip


def test_clusters(host: Host, transport: str) -> None:
    """On a device without clusters the driver refuses; the answer is the same the second time."""
    run(host, transport, """
nothing = get_function(d, load_module(d), "nothing")
config, keep = make_config((16, 1, 1), (32, 1, 1), [(4, (2, 1, 1))])
supported = c_int()
d.call("cuDeviceGetAttribute", byref(supported), 120, 0)
answers = []
for turn in range(2):
    for name in ("cuOccupancyMaxActiveClusters", "cuOccupancyMaxPotentialClusterSize"):
        value = c_int(-1)
        result = getattr(lib, name)(byref(value), nothing, byref(config))
        answers.append((result, value.value))
equal(answers[:2], answers[2:])
if supported.value:
    assert all(result == 0 and value > 0 for result, value in answers), answers
equal(lib.cuOccupancyMaxActiveClusters(None, nothing, byref(config)), INVALID_VALUE)
""")  # fmt: skip
