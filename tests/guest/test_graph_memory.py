"""Nodes that allocate, free, and work on words in memory."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.graph_program import NODES
from tests.guest.stream_program import PRELUDE

MEMORY = """
class Location(ctypes.Structure):
    _fields_ = [("type", c_int), ("id", c_int)]
class PoolProps(ctypes.Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("location", Location), ("win32", c_void_p),
                ("most", c_size_t), ("usage", ctypes.c_ushort), ("reserved", ctypes.c_ubyte * 54)]
class AllocParams(ctypes.Structure):
    _fields_ = [("props", PoolProps), ("access", c_void_p), ("count", c_size_t),
                ("bytes", c_size_t), ("address", c_uint64)]
def alloc_params(size):
    params = AllocParams()
    params.props.type = 1
    params.props.location.type = 1
    params.bytes = size
    return params
def add_alloc(graph, after, size):
    node, params = c_void_p(), alloc_params(size)
    ok(driver.cuGraphAddMemAllocNode(byref(node), graph, *handles(after), byref(params)))
    return node, c_uint64(params.address)
def add_free(graph, after, address):
    node = c_void_p()
    ok(driver.cuGraphAddMemFreeNode(byref(node), graph, *handles(after), address))
    return node
def used(what=0):
    value = c_uint64(1)
    ok(driver.cuDeviceGetGraphMemAttribute(0, what, byref(value)))
    return value.value
"""


def test_memory_of_one_launch(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + MEMORY
        + """
graph, a, size = new_graph(), alloc(4), 1 << 20
made, memory = add_alloc(graph, [], size)
zero = add_memset(graph, [made], memory, 5)
plus = add_kernel(graph, [zero], memory, 2)
copy = add_copy(graph, [plus], (DEVICE, memory.value), (DEVICE, a.value), 4)
free = add_free(graph, [copy], memory)
same([kind(n.value) for n in (made, free)], [10, 11])
got = AllocParams()
ok(driver.cuGraphMemAllocNodeGetParams(made, byref(got)))
same((got.address, got.bytes, got.props.location.id), (memory.value, size, 0))
freed = c_uint64()
ok(driver.cuGraphMemFreeNodeGetParams(free, byref(freed))); same(freed.value, memory.value)
where = c_int(9)
ok(driver.cuPointerGetAttribute(byref(where), 2, memory)); same(where.value, 2)  # device memory
executable = instantiate(graph)
for _ in range(3): run(executable); same(read(a), 7)
assert used(1) >= size and used(3) >= size  # the highest so far: used, reserved
ok(driver.cuDeviceSetGraphMemAttribute(0, 1, byref(c_uint64(0))))
assert used(1) <= used(3)
same(driver.cuDeviceSetGraphMemAttribute(0, 1, byref(c_uint64(1))), INVALID_VALUE)
# What no node has allocated no node frees.
same(driver.cuGraphAddMemFreeNode(byref(c_void_p()), new_graph(), *handles([]), a), INVALID_VALUE)
# Such a graph is not copied, and keeps its nodes.
clone = c_void_p()
assert driver.cuGraphClone(byref(clone), graph) != 0
assert driver.cuGraphDestroyNode(plus) != 0
ok(driver.cuGraphExecDestroy(executable)); ok(driver.cuGraphDestroy(graph))
ok(driver.cuCtxSynchronize()); ok(driver.cuDeviceGraphMemTrim(0))
same((used(), used(2)), (0, 0))
# Its addresses are for others now.
blocks = [alloc(1 << 20) for _ in range(8)]
for block in blocks: ok(driver.cuMemFree_v2(block))
""",
    )


def test_memory_that_outlives_a_launch(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + MEMORY
        + """
graph = new_graph()
made, memory = add_alloc(graph, [], 4096)
add_memset(graph, [made], memory, 41)
executable, s = instantiate(graph), stream()
run(executable); same(read(memory), 41)
ok(launch(s, memory, 1)); ok(driver.cuStreamSynchronize(s)); same(read(memory), 42)
assert used() >= 4096
# A second launch would allocate it again.
assert driver.cuGraphLaunch(executable, s) or driver.cuCtxSynchronize(), "launched twice"
ok(driver.cuMemFreeAsync(memory, s)); ok(driver.cuStreamSynchronize(s))
run(executable); same(read(memory), 41)
ok(driver.cuMemFree_v2(memory))
run(executable); same(read(memory), 41)
# What one graph has allocated another one frees.
last = new_graph(); add_free(last, [], memory)
run(instantiate(last))
# With this flag a launch frees what the one before has left.
graph = new_graph()
made, memory = add_alloc(graph, [], 4096)
add_memset(graph, [made], memory, 3)
automatic = c_void_p()
ok(driver.cuGraphInstantiateWithFlags(byref(automatic), graph, c_uint64(1)))
for _ in range(3): run(automatic); same(read(memory), 3)
flags = c_uint64()
ok(driver.cuGraphExecGetFlags(automatic, byref(flags))); same(flags.value, 1)
ok(driver.cuMemFree_v2(memory))
""",
    )


def test_allocations_in_a_capture(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + MEMORY
        + """
s, a, inside = stream(), alloc(4), c_uint64()
ok(driver.cuStreamBeginCapture_v2(s, GLOBAL))
ok(driver.cuMemAllocAsync(byref(inside), c_size_t(4096), s))
ok(driver.cuMemsetD32Async(inside, 20, c_size_t(1), s))
ok(launch(s, inside, 1))
ok(driver.cuMemcpyDtoDAsync_v2(a, inside, c_size_t(4), s))
ok(driver.cuMemFreeAsync(inside, s))
result, captured = end(s); ok(result)
same(sorted(kind(n) for n in nodes_of(c_void_p(captured))), [0, 1, 2, 10, 11])
executable = instantiate(c_void_p(captured))
run(executable, s); same(read(a), 21)
# What the launch has freed can be had again.
again = [c_uint64() for _ in range(8)]
for each in again: ok(driver.cuMemAllocAsync(byref(each), c_size_t(4096), s))
for each in again: ok(driver.cuMemFreeAsync(each, s))
ok(driver.cuStreamSynchronize(s))
""",
    )


def test_memory_operations(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + """
class Step(ctypes.Structure):
    _fields_ = [("operation", c_int), ("pad", c_int), ("address", c_uint64), ("value", c_uint64),
                ("flags", c_uint), ("more", c_uint), ("alias", c_uint64), ("rest", c_uint64)]
class Batch(ctypes.Structure):
    _fields_ = [("context", c_void_p), ("count", c_uint), ("steps", c_void_p), ("flags", c_uint)]
WAIT, WRITE = 1, 2
def batch(*steps):
    array = (Step * len(steps))(*(Step(o, 0, w.value, v) for o, w, v in steps))
    params = Batch(context.value, len(steps), ctypes.addressof(array), 0)
    params.keep = array
    return params
same(ctypes.sizeof(Step), 48)
graph, a, b, s = new_graph(), alloc(4), alloc(4), stream()
node = c_void_p()
params = batch((WAIT, a, 1), (WRITE, b, 7))
ok(driver.cuGraphAddBatchMemOpNode(byref(node), graph, *handles([]), byref(params)))
add_kernel(graph, [node], b, 1)
same(kind(node.value), 12)
got = Batch()
ok(driver.cuGraphBatchMemOpNodeGetParams(node, byref(got)))
steps = ctypes.cast(got.steps, POINTER(Step))
same(got.count, 2)
same([(steps[i].operation, steps[i].address, steps[i].value & 0xffffffff) for i in range(2)],
     [(WAIT, a.value, 1), (WRITE, b.value, 7)])
executable = instantiate(graph)
ok(driver.cuGraphLaunch(executable, s))
time.sleep(0.02); same(driver.cuStreamQuery(s), NOT_READY)
ok(driver.cuStreamWriteValue32_v2(_opener, a, 1, 0))
ok(driver.cuStreamSynchronize(s)); same(read(b), 8)
# cuda.h: number and kinds of operations of an executable graph stay.
params = batch((WAIT, a, 1), (WRITE, b, 70))
ok(driver.cuGraphExecBatchMemOpNodeSetParams(executable, node, byref(params)))
run(executable); same(read(b), 71)
ok(driver.cuGraphBatchMemOpNodeSetParams(node, byref(batch((WRITE, b, 80)))))
run(instantiate(graph)); same(read(b), 81)
params = batch((WAIT, a, 1), (WRITE, b, 90))
ok(driver.cuGraphExecNodeSetParams(executable, node, byref(any_of(12, bytes(params)))))
run(executable); same(read(b), 91)
""",
    )
