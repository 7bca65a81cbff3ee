"""Managed memory: host memory that kernels and program use at one address, at the same time."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT, Host
from tests.guest.test_memory import PRELUDE

MANAGED = """
CPU, NOBODY = -1, -2
class Location(ctypes.Structure):
    _fields_ = (("type", c_int), ("id", c_int))
def managed(size, flags=1):
    address = c_uint64()
    d.call("cuMemAllocManaged", byref(address), c_size_t(size), c_uint(flags))
    return address.value
def device_attribute(which):
    value = c_int()
    d.call("cuDeviceGetAttribute", byref(value), which, 0)
    return value.value
def about(attribute, address, count, numbers=1):
    data = (c_int * numbers)()
    d.call("cuMemRangeGetAttribute", data, c_size_t(4 * numbers), c_int(attribute),
           c_uint64(address), c_size_t(count))
    return list(data) if numbers > 1 else data[0]
"""

# wait_for(flag, answer): waits, bounded, until flag[0] is 1, then answer[0] = flag[1] + 1.
WAIT_FOR = """
WAIT_FOR = b'''
.version 7.0
.target sm_70
.address_size 64
.visible .entry wait_for(.param .u64 flag, .param .u64 answer)
{
  .reg .pred %p<3>;
  .reg .b32 %r<5>;
  .reg .b64 %d<3>;
  ld.param.u64 %d1, [flag];
  ld.param.u64 %d2, [answer];
  mov.u32 %r3, 0;
again:
  ld.volatile.global.u32 %r1, [%d1];
  setp.eq.u32 %p1, %r1, 1;
  @%p1 bra seen;
  add.s32 %r3, %r3, 1;
  setp.lt.u32 %p2, %r3, 8000000;
  @%p2 bra again;
  ret;
seen:
  ld.volatile.global.u32 %r2, [%d1+4];
  add.s32 %r2, %r2, 1;
  st.volatile.global.u32 [%d2], %r2;
  ret;
}
'''
"""


def run(host: Host, transport: str, text: str, **variables: str) -> str:
    """Runs a program on a vGPU."""
    return host.run_python(transport, PRELUDE + MANAGED + text, PYTHONPATH=str(ROOT), **variables)


def test_program_and_kernels_share_it(host: Host) -> None:
    """One address, no copies, and attributes that say what it is."""
    run(host, "shm", """
equal((device_attribute(83), device_attribute(89)), (1, 1))
n = 5000
a = managed(4 * n)
equal(read_host(a, 4 * n), bytes(4 * n))              # clear, as the driver's
numbers = (c_uint * n).from_address(a)
for turn in range(3):
    for i in range(n):
        numbers[i] += i
    d.launch(d.function("add_one"), 20, 256, c_uint64(a), c_uint(n))
    d.synchronize()
equal(list(numbers), [3 * i + 3 for i in range(n)])
equal(d.attribute(8, a + 4), 1)                        # IS_MANAGED
equal(d.attribute(2, a), DEVICE)
equal((d.attribute(3, a + 8), d.attribute(4, a + 8)), (a + 8, a + 8))
equal(d.attribute(1, a), d.context.value)
base, size = c_uint64(), c_size_t()
d.call("cuMemGetAddressRange_v2", byref(base), byref(size), c_uint64(a + 100))
equal((base.value, size.value), (a, 4 * n))
d.free(a)
value = c_uint64()
equal(lib.cuPointerGetAttribute(byref(value), 8, c_uint64(a)), INVALID_VALUE)
equal(lib.cuMemFree_v2(c_uint64(a)), INVALID_VALUE)
b = managed(4 * n)
equal(read_host(b, 4 * n), bytes(4 * n))
""")  # fmt: skip


def test_both_use_it_while_a_kernel_runs(host: Host) -> None:
    """What CONCURRENT_MANAGED_ACCESS promises: stores of either side reach the other meanwhile."""
    run(host, "shm", WAIT_FOR + """
import time
module, function = c_void_p(), c_void_p()
d.call("cuModuleLoadData", byref(module), WAIT_FOR)
d.call("cuModuleGetFunction", byref(function), module, b"wait_for")
a = managed(64)
words = (c_uint * 16).from_address(a)
d.launch(function, 1, 1, c_uint64(a), c_uint64(a + 32))
words[1] = 41
words[0] = 1
deadline = time.monotonic() + 20
while words[8] == 0 and time.monotonic() < deadline:
    time.sleep(0.001)
equal(words[8], 42)
d.synchronize()
""")  # fmt: skip


def test_copies_and_memsets(host: Host) -> None:
    """As with any device memory, in every direction."""
    run(host, "shm", """
size = (3 << 20) + 5
a, plain = managed(size), d.alloc(size)
data = pattern(size)
d.upload(plain, data)
s = d.stream()
d.call("cuMemcpyDtoDAsync_v2", a, plain, size, s)
d.call("cuStreamSynchronize", s)
equal(read_host(a, size), data)
equal(d.download(a, size), data)
d.call("cuMemsetD8_v2", a, 0x5a, size)
d.call("cuCtxSynchronize")
equal(read_host(a, size), b"\\x5a" * size)
d.call("cuMemcpyHtoDAsync_v2", c_uint64(a), data, c_size_t(size), s)
d.call("cuStreamSynchronize", s)
write_host(a + size - 1, b"!")
d.call("cuMemcpyDtoDAsync_v2", plain, a, size, s)
d.call("cuStreamSynchronize", s)
equal(d.download(plain, size), data[:-1] + b"!")
d.call("cuMemcpy", c_uint64(plain), c_uint64(a), c_size_t(size))
equal(d.download(plain, size), data[:-1] + b"!")
""")  # fmt: skip


def test_advice_and_prefetching(host: Host) -> None:
    """Checked, remembered page by page, and without effect."""
    run(host, "shm", """
page = 4096
a = managed(16 * page)
def advise(advice, device, at=a, count=16 * page):
    return lib.cuMemAdvise(c_uint64(at), c_size_t(count), c_int(advice), c_int(device))
READ_MOSTLY, PREFERRED, ACCESSED_BY, PREFETCHED = 1, 2, 3, 4
whole = (a, 16 * page)
equal(about(READ_MOSTLY, *whole), 0)
equal(about(PREFERRED, *whole), NOBODY)
equal(about(ACCESSED_BY, *whole, 3), [NOBODY] * 3)
equal(about(PREFETCHED, *whole), NOBODY)
equal(advise(1, 0), SUCCESS)
equal(about(READ_MOSTLY, *whole), 1)
equal(advise(2, 0, a + 4 * page, page), SUCCESS)
equal(about(READ_MOSTLY, *whole), 0)
equal(about(READ_MOSTLY, a, 4 * page), 1)
equal(about(READ_MOSTLY, a + 5 * page, page), 1)
equal(advise(3, CPU), SUCCESS)
equal(about(PREFERRED, *whole), CPU)
equal(about(5, *whole), 2)                             # PREFERRED_LOCATION_TYPE: host
equal(advise(3, 0, a, page), SUCCESS)
equal(about(PREFERRED, *whole), NOBODY)
equal(about(PREFERRED, a, page), 0)
equal(advise(5, 0), SUCCESS)
equal(advise(5, CPU), SUCCESS)
equal(sorted(about(ACCESSED_BY, *whole, 3)), [NOBODY, CPU, 0])
equal(advise(6, CPU), SUCCESS)
equal(about(ACCESSED_BY, *whole, 3), [0, NOBODY, NOBODY])
location = Location(1, 0)
equal(lib.cuMemAdvise_v2(c_uint64(a), c_size_t(page), c_int(4), location), SUCCESS)
equal(about(PREFERRED, a, page), NOBODY)
s = d.stream()
equal(lib.cuMemPrefetchAsync(c_uint64(a), c_size_t(8 * page), c_int(0), s), SUCCESS)
equal(about(PREFETCHED, a, 8 * page), 0)
equal(about(PREFETCHED, *whole), NOBODY)
host_place = Location(2, 0)
whole_at = (c_uint64(a), c_size_t(16 * page))
equal(lib.cuMemPrefetchAsync_v2(*whole_at, host_place, c_uint(0), s), SUCCESS)
equal(about(PREFETCHED, *whole), CPU)
data = [c_int(), c_int()]
places = (c_void_p * 2)(*[ctypes.addressof(each) for each in data])
d.call("cuMemRangeGetAttributes", places, (c_size_t * 2)(4, 4), (c_int * 2)(1, 4), 2, a, page)
equal([each.value for each in data], [1, CPU])
# What the driver refuses.
other = d.alloc(1 << 20)
equal(advise(1, 0, other, page), INVALID_VALUE)
equal(advise(1, 0, a, 17 * page), INVALID_VALUE)
equal(advise(9, 0), INVALID_VALUE)
equal(advise(3, 77), 101)                              # CUDA_ERROR_INVALID_DEVICE
equal(lib.cuMemPrefetchAsync(c_uint64(other), c_size_t(page), c_int(0), s), INVALID_VALUE)
equal(lib.cuMemPrefetchAsync(c_uint64(a), c_size_t(page), c_int(0), c_void_p(8)) != SUCCESS, True)
# Memory that is freed leaves no advice behind.
d.free(a)
again = [managed(16 * page) for _ in range(4)]
equal([about(READ_MOSTLY, b, 16 * page) for b in again], [0] * 4)
""")  # fmt: skip


def test_batches_and_attaching(host: Host) -> None:
    """Batches of prefetches and discards, and attaching to a stream."""
    run(host, "shm", """
page = 4096
blocks = [managed(4 * page) for _ in range(3)]
s = d.stream()
places = (c_uint64 * 3)(*blocks)
sizes = (c_size_t * 3)(*[4 * page] * 3)
locations = (Location * 2)(Location(1, 0), Location(2, 0))
first = (c_size_t * 2)(0, 2)
d.call("cuMemPrefetchBatchAsync", places, sizes, 3, locations, first, 2, 0, s)
equal([about(4, b, 4 * page) for b in blocks], [0, 0, CPU])
d.call("cuMemDiscardBatchAsync", places, sizes, 3, 0, s)
first = (c_size_t * 2)(0, 1)
d.call("cuMemDiscardAndPrefetchBatchAsync", places, sizes, 3, locations, first, 2, 0, s)
first = (c_size_t * 2)(0, 2)
equal([about(4, b, 4 * page) for b in blocks], [0, CPU, CPU])
prefetch = lambda *a: d.result("cuMemPrefetchBatchAsync", *a)
equal(prefetch(places, sizes, 3, locations, (c_size_t * 2)(1, 2), 2, 0, s), INVALID_VALUE)
equal(prefetch(places, sizes, 3, locations, (c_size_t * 2)(0, 3), 2, 0, s), INVALID_VALUE)
equal(prefetch(places, sizes, 0, locations, first, 2, 0, s), INVALID_VALUE)
equal(prefetch(places, sizes, 3, locations, first, 2, 1, s), INVALID_VALUE)
equal(prefetch(places, sizes, 3, locations, first, 2, 0, None), INVALID_VALUE)   # legacy stream
GLOBAL, HOST_ONLY, SINGLE = 1, 2, 4
attach = lambda stream, at, length, flags: lib.cuStreamAttachMemAsync(
    stream, c_uint64(at), c_size_t(length), c_uint(flags))
equal(attach(s, blocks[0], 0, SINGLE), SUCCESS)
equal(attach(s, blocks[0], 4 * page, GLOBAL), SUCCESS)
equal(attach(None, blocks[0], 0, HOST_ONLY), SUCCESS)
equal(attach(None, blocks[0], 0, SINGLE), INVALID_VALUE)
equal(attach(s, blocks[0] + 8, 0, SINGLE), INVALID_VALUE)
equal(attach(s, blocks[0], page, SINGLE), INVALID_VALUE)
equal(attach(s, blocks[0], 0, 3), INVALID_VALUE)
equal(attach(s, d.alloc(page), 0, SINGLE), INVALID_VALUE)
""")  # fmt: skip


def test_limits_and_errors(host: Host) -> None:
    """More than the window is OUT_OF_MEMORY at once, and freeing makes room again."""
    run(host, "shm", """
address = c_uint64()
allocate = lambda size, flags: lib.cuMemAllocManaged(byref(address), c_size_t(size), c_uint(flags))
equal(allocate(0, 1), INVALID_VALUE)
equal(allocate(4096, 0), INVALID_VALUE)
equal(allocate(4096, 4), INVALID_VALUE)
equal(allocate(4096, 2), SUCCESS)
equal(allocate(1 << 37, 1), OUT_OF_MEMORY)
equal(allocate(2 ** 63, 1), OUT_OF_MEMORY)
held = []
while allocate(200 << 20, 1) == SUCCESS:
    held.append(address.value)
    assert len(held) < 100
assert len(held) >= 3, held
d.free(held.pop())
equal(allocate(200 << 20, 1), SUCCESS)
""")  # fmt: skip


def test_there_is_none_without_shared_memory(host: Host) -> None:
    """Refused with a code that programs can cope with, and the attributes say so before."""
    run(host, "tcp", """
address = c_uint64()
equal(lib.cuMemAllocManaged(byref(address), c_size_t(4096), c_uint(1)), NOT_SUPPORTED)
equal((device_attribute(83), device_attribute(89)), (0, 0))
""")  # fmt: skip


@pytest.mark.gpu
def test_managed_variables_are_refused(host: Host, transport: str) -> None:
    """The driver keeps them in the worker's memory; the program gets an error, not that address."""
    run(host, transport, """
PTX = b'''
.version 7.0
.target sm_70
.address_size 64
.visible .global .attribute(.managed) .align 4 .u32 shared_number;
.visible .global .align 4 .u32 number;
'''
module, address, size = c_void_p(), c_uint64(), c_size_t()
d.call("cuModuleLoadData", byref(module), PTX)
get = lambda name: lib.cuModuleGetGlobal_v2(byref(address), byref(size), module, name)
equal(get(b"number"), SUCCESS)
equal(get(b"shared_number"), NOT_SUPPORTED)
""")  # fmt: skip
