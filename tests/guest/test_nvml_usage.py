"""What the guest's NVML tells of memory, processes and load: the guest's own, and nobody else's."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.conftest import Host, end_host, make_host
from tests.guest.nvml import USED, Holder, ask

pytest.importorskip("pynvml", reason="nvidia-ml-py is missing")

# One thread that counts to n.
SPIN = """
from tests.guest.kernels import Parameters, get_function, launch, load_module
PTX = b'''
.version 8.0
.target sm_80
.address_size 64
.visible .entry spin(.param .u64 out, .param .u64 n)
{
  .reg .pred %p<2>;
  .reg .b64 %rd<5>;
  ld.param.u64 %rd1, [out];
  ld.param.u64 %rd2, [n];
  mov.u64 %rd3, 0;
again:
  add.u64 %rd3, %rd3, 1;
  st.volatile.global.u64 [%rd1], %rd3;
  setp.lt.u64 %p1, %rd3, %rd2;
  @%p1 bra again;
  ret;
}
'''
function = get_function(d, load_module(d, PTX), "spin")
out = d.alloc(8)

def spin(n):
    assert launch(d, function, parameters=Parameters(c_uint64(out), c_uint64(n))) == 0

def load():
    return nvmlDeviceGetUtilizationRates(h).gpu

# How far it counts in a second. The first one also loads the kernel.
spin(1)
d.call("cuCtxSynchronize")
n = 1000
while True:
    start = time.monotonic()
    spin(n)
    d.call("cuCtxSynchronize")
    took = time.monotonic() - start
    if took > 0.1:
        break
    n *= 4
n = int(n / took)
"""


def test_own_memory_and_processes(own_host: Host, transport: str) -> None:
    assert ask(own_host, transport)["gpus"][0]["processes"] == []
    with Holder(own_host, transport, 64) as one, Holder(own_host, transport, 32) as two:
        gpu = ask(own_host, transport)["gpus"][0]
        expected = [[one.pid, 64 << 20], [two.pid, 32 << 20]]
        assert sorted(gpu["processes"]) == sorted(expected)
        assert gpu["processes_v2"] == gpu["processes"]
        assert gpu["memory"][2] == 96 << 20
    own_host.wait_until(lambda: not own_host.sessions(), "the sessions to end")
    gpu = ask(own_host, transport)["gpus"][0]
    assert gpu["processes"] == []
    assert gpu["memory"][2] == 0


def test_every_way_to_allocate_is_counted(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        USED
        + """
def ask():  # what the client keeps for its next allocation counts until it asks anything
    d.call("cuMemGetInfo_v2", byref(c_size_t()), byref(c_size_t()))
used(0)
a = d.alloc(1000)
used(1024)
d.call("cuMemFree_v2", c_uint64(a))
used(1024)
ask()
used(0)
p, pitch = c_uint64(), c_size_t()
d.call("cuMemAllocPitch_v2", byref(p), byref(pitch), c_size_t(1000), c_size_t(16), c_uint(4))
used(-(-pitch.value * 16 // 512) * 512)
d.call("cuMemFree_v2", p)
ask()
d.call("cuMemAllocAsync", byref(p), c_size_t(3 * MIB), None)
used(3 * MIB)
d.call("cuMemFreeAsync", p, None)
ask()
used(0)

class Array(Structure):
    _fields_ = [("width", c_size_t), ("height", c_size_t), ("format", c_int), ("channels", c_uint)]

array, FLOAT = c_void_p(), 0x20
d.call("cuArrayCreate_v2", byref(array), byref(Array(64, 32, FLOAT, 2)))
used(64 * 32 * 2 * 4)
d.call("cuArrayDestroy", array)
used(0)
""",
    )


def test_a_physical_block_counts_while_anything_holds_it(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        USED
        + """
class Location(Structure):
    _fields_ = [("type", c_int), ("id", c_int)]

class Properties(Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("location", Location), ("win32", c_void_p),
                ("flags", c_ubyte * 8)]

properties = Properties(1, 0, Location(1, 0))  # pinned memory of device 0
size = c_size_t()
d.call("cuMemGetAllocationGranularity", byref(size), byref(properties), c_int(0))
block, address = c_uint64(), c_uint64()
d.call("cuMemCreate", byref(block), size, byref(properties), c_uint64(0))
used(size.value)
d.call("cuMemAddressReserve", byref(address), size, c_size_t(0), c_uint64(0), c_uint64(0))
d.call("cuMemMap", address, size, c_size_t(0), block, c_uint64(0))
d.call("cuMemRelease", block)
used(size.value)  # the mapping holds it
d.call("cuMemUnmap", address, size)
used(0)
""",
    )


def test_a_destroyed_context_gives_its_memory_back(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        USED
        + """
context = c_void_p()
d.alloc(MIB)
d.call("cuCtxCreate_v2", byref(context), c_uint(0), c_int(0))
d.alloc(2 * MIB)
used(3 * MIB)
d.call("cuCtxDestroy_v2", context)
used(MIB)
""",
    )


def test_a_later_hostd_still_knows_the_usage(own_host: Host, transport: str) -> None:
    with Holder(own_host, transport, 16) as holder:
        own_host.stop()
        own_host.start()
        assert ask(own_host, transport)["gpus"][0]["processes"] == [[holder.pid, 16 << 20]]


def test_two_doors_do_not_see_each_other(own_host: Host) -> None:
    """A tenant is known by its endpoint: what came in by TCP is not seen through the socket."""
    with Holder(own_host, "tcp", 64) as holder:
        inside, outside = (ask(own_host, each)["gpus"][0] for each in ("tcp", "shm"))
        assert inside["processes"] == [[holder.pid, 64 << 20]]
        assert outside["processes"] == []
        assert outside["memory"][2] == 0
        assert outside["utilization"] == 0


def test_two_hosts_do_not_see_each_other(own_host: Host, transport: str) -> None:
    """Two hostds may share a card; each tells of its own sessions."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        other = make_host(Path(name))
        try:
            with Holder(own_host, transport, 64):
                gpu = ask(other, transport)["gpus"][0]
                assert gpu["processes"] == []
                assert gpu["memory"][2] == 0
        finally:
            end_host(other)


def test_utilisation_is_the_share_of_time_with_work(own_host: Host, transport: str) -> None:
    own_host.run_python(
        transport,
        USED
        + SPIN
        + """
spin(3 * n)  # and nobody waits for it
time.sleep(1.5)
assert load() >= 80, load()
mine = nvmlDeviceGetProcessUtilization(h, 0)
assert [one.pid for one in mine] == [os.getpid()] and mine[0].smUtil >= 80
d.call("cuCtxSynchronize")
time.sleep(1.3)
assert load() <= 4, load()
deadline = time.monotonic() + 2.2  # a fifth of the time
while time.monotonic() < deadline:
    spin(n // 10)
    d.call("cuCtxSynchronize")
    time.sleep(0.4)
assert 5 <= load() <= 60, load()
""",
    )


def test_what_is_captured_is_no_work_and_is_not_disturbed(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        USED
        + SPIN
        + """
stream, graph = c_void_p(), c_void_p()
d.call("cuStreamCreate", byref(stream), c_uint(1))
d.call("cuStreamBeginCapture_v2", stream, c_int(0))
assert launch(d, function, parameters=Parameters(c_uint64(out), c_uint64(9)), stream=stream) == 0
time.sleep(1.2)  # sampled fifty times meanwhile
mine = [one.smUtil for one in nvmlDeviceGetProcessUtilization(h, 0) if one.pid == os.getpid()]
assert mine[0] <= 4, mine
d.call("cuStreamEndCapture", stream, byref(graph))
assert graph.value
""",
    )
