"""A vGPU's memory quota: every way to allocate counts, exact to 512 bytes, and ends at it."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.graph_program import NODES

QUOTA_MIB = 64

PROGRAM = """
import ctypes, time
from ctypes import *
from tests.guest.cuda import Driver
d = Driver()
driver = d.lib
MIB, OUT_OF_MEMORY = 1 << 20, 2

calls, pools = [], []  # for those who read a failure: what was asked last, the pools there are

def attribute(call, of, number):
    value = c_uint64()
    result = getattr(driver, call)(of, number, byref(value))
    return value.value if result == 0 else f"error {result}"
# Everything that says where the memory is. Right only 50 ms later: a free was still on its way.
def state():
    told = {"last calls (size, result)": calls[-8:], "free, total": info()}
    time.sleep(0.05)
    told["50 ms later"] = info()
    usual = c_void_p()
    ok(driver.cuDeviceGetDefaultMemPool(byref(usual), 0))
    told["pools hold, use"] = [
        [attribute("cuMemPoolGetAttribute", one, n) for n in (5, 7)]
        for one in [usual, pool, *pools]]
    told["graphs use, hold"] = [attribute("cuDeviceGetGraphMemAttribute", 0, n) for n in (0, 2)]
    return told
def ok(result, what=""):
    assert result == 0, f"{what} got {result}; {state()}"
def same(got, wanted, what=""):
    assert got == wanted, f"{what} got {got}, expected {wanted}; {state()}"
def noted(make):
    def call(size):
        result = make(size)
        calls.append((make.__name__, size, result[0]))
        return result
    call.__name__ = make.__name__
    return call
def info():
    free, total = c_size_t(), c_size_t()
    assert driver.cuMemGetInfo_v2(byref(free), byref(total)) == 0
    return free.value, total.value
def room():
    return info()[0]

class Location(Structure):
    _fields_ = [("type", c_int), ("id", c_int)]
class PoolProps(Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("location", Location), ("win32", c_void_p),
                ("most", c_size_t), ("usage", c_ushort), ("reserved", c_ubyte * 54)]
class BlockProps(Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("location", Location), ("win32", c_void_p),
                ("flags", c_ubyte * 8)]
class Array(Structure):
    _fields_ = [("width", c_size_t), ("height", c_size_t), ("format", c_int), ("channels", c_uint)]
class Array3D(Structure):
    _fields_ = [("width", c_size_t), ("height", c_size_t), ("depth", c_size_t), ("format", c_int),
                ("channels", c_uint), ("flags", c_uint)]

pool_props = PoolProps(1, 0, Location(1, 0))
block_props = BlockProps(1, 0, Location(1, 0))
pool = c_void_p()
ok(driver.cuMemPoolCreate(byref(pool), byref(pool_props)))
unit = c_size_t()  # of physical blocks
ok(driver.cuMemGetAllocationGranularity(byref(unit), byref(block_props), c_int(0)))

# Each: what makes `size` bytes, what frees them, and the unit of its sizes.
@noted
def plain(size):
    address = c_uint64()
    return driver.cuMemAlloc_v2(byref(address), c_size_t(size)), address
@noted
def pitched(size):
    address, pitch = c_uint64(), c_size_t()
    return driver.cuMemAllocPitch_v2(byref(address), byref(pitch), c_size_t(300),
                                     c_size_t(size // 512), c_uint(4)), address
@noted
def ordered(size):
    address = c_uint64()
    return driver.cuMemAllocAsync(byref(address), c_size_t(size), None), address
@noted
def pooled(size):
    address = c_uint64()
    return driver.cuMemAllocFromPoolAsync(byref(address), c_size_t(size), pool, None), address
@noted
def block(size):
    handle, none = c_uint64(), c_uint64(0)
    return driver.cuMemCreate(byref(handle), c_size_t(size), byref(block_props), none), handle
@noted
def array(size):
    handle = c_void_p()
    shape = Array(size // 512, 64, 0x20, 2)  # 64 rows of elements of two floats
    return driver.cuArrayCreate_v2(byref(handle), byref(shape)), handle
@noted
def volume(size):
    handle = c_void_p()
    shape = Array3D(64, size // 65536, 128, 0x20, 2, 0)
    return driver.cuArray3DCreate_v2(byref(handle), byref(shape)), handle
def free(address):
    ok(driver.cuMemFree_v2(address))
def free_async(address):
    ok(driver.cuMemFreeAsync(address, None))
    ok(driver.cuStreamSynchronize(None))
def release(handle):
    ok(driver.cuMemRelease(handle))
def destroy(handle):
    ok(driver.cuArrayDestroy(handle))
WAYS = [(plain, free, 512), (pitched, free, 512), (ordered, free_async, 512), (ordered, free, 512),
        (pooled, free_async, 512), (block, release, unit.value), (array, destroy, 512),
        (volume, destroy, 65536)]
"""


def run(host: Host, transport: str, text: str, memory_mib: int = QUOTA_MIB) -> str:
    return host.run_python(transport, PROGRAM + text, GPUPOOL_MEMORY_MIB=str(memory_mib))


def test_the_quota_is_what_the_program_sees(host: Host, transport: str) -> None:
    run(
        host,
        transport,
        """
same(info(), (64 * MIB, 64 * MIB))
total = c_size_t()
ok(driver.cuDeviceTotalMem_v2(byref(total), 0))
same(total.value, 64 * MIB)
address = d.alloc(3 * MIB + 1)
same(info(), (61 * MIB - 512, 64 * MIB))
free(c_uint64(address))
same(info(), (64 * MIB, 64 * MIB))
""",
    )


def test_every_way_to_allocate_ends_at_the_quota(host: Host, transport: str) -> None:
    """Over it is OUT_OF_MEMORY at once, and what fits is had by the next call."""
    run(
        host,
        transport,
        """
for make, give_back, step in WAYS:
    name = make.__name__
    whole = room() // step * step
    same(whole, 64 * MIB, name)
    same(make(whole + step)[0], OUT_OF_MEMORY, name)
    result, thing = make(whole)
    same(result, 0, name)
    same(room(), 0, f"{name}, all of it")
    for other, _, least in WAYS:
        same(other(least)[0], OUT_OF_MEMORY, f"{other.__name__} after {name}")
    give_back(thing)
    same(room(), 64 * MIB, f"{name}, given back by {give_back.__name__}")
    result, half = make(32 * MIB)
    same(result, 0, f"{name}, half")
    same(plain(32 * MIB + 1)[0], OUT_OF_MEMORY, name)
    result, rest = plain(32 * MIB)
    same(result, 0, name)
    free(rest)
    give_back(half)
""",
    )


def test_what_does_not_fit_takes_nothing(host: Host, transport: str) -> None:
    run(
        host,
        transport,
        """
for make, _, step in WAYS:
    for size in (66 * MIB, 1 << 40):
        same(make(size)[0], OUT_OF_MEMORY, make.__name__)
same(driver.cuMemAlloc_v2(byref(c_uint64()), c_size_t(2**64 - 1)), OUT_OF_MEMORY)
same(room(), 64 * MIB)
""",
    )


def test_a_program_that_keeps_its_own_cache(host: Host, transport: str) -> None:
    """As PyTorch does: blocks until there is no more, all back, and again."""
    run(
        host,
        transport,
        """
for make, give_back in ((plain, free), (ordered, free_async)):
    for round in range(3):
        held = []
        while True:
            result, thing = make(2 * MIB)
            if result:
                break
            held.append(thing)
        same((result, len(held)), (OUT_OF_MEMORY, 32))
        for thing in held:
            give_back(thing)
        result, thing = make(60 * MIB)  # kept by the client or not: it is given back first
        same(result, 0, "the next larger one")
        give_back(thing)
""",
    )


def test_a_physical_block_counts_while_it_is_mapped(host: Host, transport: str) -> None:
    run(
        host,
        transport,
        """
size, address, none = 32 * MIB, c_uint64(), c_uint64(0)
result, handle = block(size)
same(result, 0)
ok(driver.cuMemAddressReserve(byref(address), c_size_t(size), c_size_t(0), none, none))
ok(driver.cuMemMap(address, c_size_t(size), c_size_t(0), handle, none))
release(handle)
same(room(), 32 * MIB)
same(block(size + unit.value)[0], OUT_OF_MEMORY)
ok(driver.cuMemUnmap(address, c_size_t(size)))
same(room(), 64 * MIB)
""",
    )


def test_what_pools_keep_counts(host: Host, transport: str) -> None:
    """Beyond 32 MiB, and only until somebody of this program needs it."""
    run(
        host,
        transport,
        """
most = c_uint64(2**64 - 1)
for _ in range(6):
    one = c_void_p()
    ok(driver.cuMemPoolCreate(byref(one), byref(pool_props)))
    ok(driver.cuMemPoolSetAttribute(one, 4, byref(most)))  # the release threshold
    pools.append(one)
address = c_uint64()
def use(one, size):
    result = driver.cuMemAllocFromPoolAsync(byref(address), c_size_t(size), one, None)
    calls.append(("from pool", pools.index(one), size, result))
    if result == 0:
        free_async(address)
    return result
same(use(pools[0], 48 * MIB), 0)
kept = 64 * MIB - room()
assert kept >= 16 * MIB, (kept, state())
result, whole = plain(64 * MIB)
same(result, 0, "what is idle goes first")
same(use(pools[1], 512), OUT_OF_MEMORY)
free(whole)
for one in pools:
    same(use(one, 48 * MIB), 0)
    reserved = 0
    for each in pools:
        value = c_uint64()
        ok(driver.cuMemPoolGetAttribute(each, 5, byref(value)))  # what it holds
        reserved += value.value
    assert reserved <= 96 * MIB, (reserved // MIB, state())
ok(driver.cuMemPoolTrimTo(pools[-1], c_size_t(0)))
while pools:
    ok(driver.cuMemPoolDestroy(pools.pop()))
same(room(), 64 * MIB)
""",
    )


def test_a_destroyed_context_makes_room(host: Host, transport: str) -> None:
    run(
        host,
        transport,
        """
context = c_void_p()
ok(driver.cuCtxCreate_v2(byref(context), c_uint(0), c_int(0)))
same(plain(60 * MIB)[0], 0)
same(plain(5 * MIB)[0], OUT_OF_MEMORY)
ok(driver.cuCtxDestroy_v2(context))
same(room(), 64 * MIB)
same(plain(64 * MIB)[0], 0)
""",
    )


def test_memory_of_graphs(host: Host, transport: str) -> None:
    """What an executable graph allocates must fit when it is made; what it holds counts."""
    run(
        host,
        transport,
        NODES
        + """
class AllocParams(Structure):
    _fields_ = [("props", PoolProps), ("access", c_void_p), ("count", c_size_t),
                ("bytes", c_size_t), ("address", c_uint64)]
def graph_of(size):
    graph, node, params = c_void_p(), c_void_p(), AllocParams(props=pool_props, bytes=size)
    ok(driver.cuGraphCreate(byref(graph), 0))
    ok(driver.cuGraphAddMemAllocNode(byref(node), graph, None, c_size_t(0), byref(params)))
    return graph, params.address
def make(graph):
    executable = c_void_p()
    return driver.cuGraphInstantiateWithFlags(byref(executable), graph, c_uint64(0)), executable
taken = d.alloc(20 * MIB)
big, _ = graph_of(48 * MIB)
same(make(big)[0], OUT_OF_MEMORY, "a graph that cannot fit")
ok(driver.cuGraphDestroy(big))
graph, address = graph_of(40 * MIB)
result, executable = make(graph)
same(result, 0, "instantiate")
result, more = plain(30 * MIB)
same(result, 0, "beside a graph that holds nothing")
same(driver.cuGraphLaunch(executable, None), OUT_OF_MEMORY, "launch")  # and not later
free(more)
ok(driver.cuGraphLaunch(executable, None), "launch")
ok(driver.cuCtxSynchronize())
same(room(), 4 * MIB, "what it asked for, not what the driver rounds that to")
same(plain(5 * MIB)[0], OUT_OF_MEMORY, "beside it")
free(c_uint64(address))
ok(driver.cuGraphExecDestroy(executable))
ok(driver.cuGraphDestroy(graph))
ok(driver.cuDeviceGraphMemTrim(0))
same(room(), 44 * MIB, "trimmed")
same(plain(44 * MIB)[0], 0)
""",
    )


def test_a_program_without_a_quota_sees_the_card(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PROGRAM
        + """
total = c_size_t()
ok(driver.cuDeviceTotalMem_v2(byref(total), 0))
same(info()[1], total.value)
assert total.value > 1 << 30
same(plain(200 * MIB)[0], 0)
""",
    )


def test_variables_of_modules_count(host: Host, transport: str) -> None:
    run(
        host,
        transport,
        """
HEAD = b".version 8.0\\n.target sm_80\\n.address_size 64\\n"
def image(mib):
    return HEAD + b".visible .global .b8 big[%d];" % (mib << 20)
def module(mib):
    handle = c_void_p()
    return driver.cuModuleLoadData(byref(handle), image(mib)), handle
def library(mib):
    handle = c_void_p()
    options = (None, None, 0, None, None, 0)
    return driver.cuLibraryLoadData(byref(handle), image(mib), *options), handle
for make, unload in ((module, driver.cuModuleUnload), (library, driver.cuLibraryUnload)):
    same(make(65)[0], OUT_OF_MEMORY)
    result, handle = make(48)
    same(result, 0)
    same(room(), 16 * MIB)
    same(plain(17 * MIB)[0], OUT_OF_MEMORY)
    same(make(17)[0], OUT_OF_MEMORY)
    ok(unload(handle))
    same(room(), 64 * MIB)
""",
    )


def test_heaps_of_kernels_count(host: Host, transport: str) -> None:
    """What kernels may allocate by themselves, beyond what a context begins with."""
    run(
        host,
        transport,
        """
HEAP, now = 2, c_size_t()
ok(driver.cuCtxGetLimit(byref(now), HEAP))
same(driver.cuCtxSetLimit(HEAP, c_size_t(now.value + 65 * MIB)), OUT_OF_MEMORY)
ok(driver.cuCtxSetLimit(HEAP, c_size_t(now.value + 60 * MIB)))
same(room(), 4 * MIB)
same(plain(5 * MIB)[0], OUT_OF_MEMORY)
ok(driver.cuCtxSetLimit(HEAP, c_size_t(now.value + 20 * MIB)))
same(room(), 44 * MIB)
ok(driver.cuCtxSetLimit(HEAP, c_size_t(now.value)))
same(plain(64 * MIB)[0], 0)
""",
    )


def test_an_exported_block_counts_until_nobody_can_open_it(host: Host, transport: str) -> None:
    """Whoever has released it: another program may map it at any time."""
    run(
        host,
        transport,
        """
import os
size, handle, fd, none = 32 * MIB, c_uint64(), c_int(), c_uint64(0)
shared = BlockProps(1, 1, Location(1, 0))  # can be exported as a descriptor
ok(driver.cuMemCreate(byref(handle), c_size_t(size), byref(shared), none))
ok(driver.cuMemExportToShareableHandle(byref(fd), handle, 1, none))
imported = c_uint64()
ok(driver.cuMemImportFromShareableHandle(byref(imported), c_void_p(fd.value), 1))
same(room(), 32 * MIB, "imported")  # charged once
release(imported)
release(handle)
same(room(), 32 * MIB, "released")
same(plain(33 * MIB)[0], OUT_OF_MEMORY)
os.close(fd.value)
same(plain(64 * MIB)[0], 0, "closed")
""",
    )
