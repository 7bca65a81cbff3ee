"""Copies in graphs with the program's own memory, pinned and pageable, in every shape."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.graph_program import NODES
from tests.guest.stream_program import PRELUDE

HOST_COPIES = """
def words(*values):
    return (c_uint * len(values))(*values)
def address(array):
    return ctypes.addressof(array)
def pinned(size):
    memory = c_void_p()
    ok(driver.cuMemHostAlloc(byref(memory), c_size_t(size), 0))
    return memory.value
"""


def test_nodes_with_host_memory(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + HOST_COPIES
        + """
def chain(source, target):
    graph, a = new_graph(), alloc(4)
    into = add_copy(graph, [], (HOST, source), (DEVICE, a.value), 4)
    add = add_kernel(graph, [into], a, 5)
    back = add_copy(graph, [add], (DEVICE, a.value), (HOST, target), 4)
    return graph, a, into, back
# Read when the graph is launched, and there when its stream is done.
given, got = words(1), words(0)
graph, a, into, back = chain(address(given), address(got))
executable = instantiate(graph)
for value in (1, 20, 300):
    given[0] = value
    run(executable); same(got[0], value + 5)
seen = Copy()
ok(driver.cuGraphMemcpyNodeGetParams(into, byref(seen)))
same((seen.src.type, seen.src.host, seen.width), (HOST, address(given), 4))
# Another memory in the executable, then in the graph.
other, elsewhere = words(1000), words(0)
params = copy_params((HOST, address(other)), (DEVICE, a.value), 4)
ok(driver.cuGraphExecMemcpyNodeSetParams(executable, into, byref(params), context))
run(executable); same(got[0], 1005)
params = copy_params((DEVICE, a.value), (HOST, address(elsewhere)), 4)
ok(driver.cuGraphMemcpyNodeSetParams(back, byref(params)))
given[0] = 7
run(instantiate(graph)); same((got[0], elsewhere[0]), (1005, 12))
# A clone and a parent copy to the same memory.
clone, parent, node = c_void_p(), new_graph(), c_void_p()
ok(driver.cuGraphClone(byref(clone), graph))
ok(driver.cuGraphAddChildGraphNode(byref(node), parent, *handles([]), graph))
ok(driver.cuGraphDestroy(graph))
for number, each in enumerate((clone, parent)):
    given[0] = 100 * number
    run(instantiate(each)); same(elsewhere[0], 100 * number + 5)
# Pinned memory, which is in reach of the GPU itself on one host.
memory = pinned(64)
view = ctypes.cast(memory, POINTER(c_uint))
graph, *_ = chain(memory, memory + 4)
executable = instantiate(graph)
for value in (1, 20, 300):
    view[0] = value
    run(executable); same(view[1], value + 5)
""",
    )


def test_rows_and_arrays(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + HOST_COPIES
        + """
# 3 rows of 2 words out of rows of 4, to rows of 5 and back through an array.
source = words(*range(100, 120))
target = words(*([7] * 15))
class ArrayDescription(ctypes.Structure):
    _fields_ = [("width", c_size_t), ("height", c_size_t), ("format", c_int), ("channels", c_uint)]
array = c_void_p()
ok(driver.cuArrayCreate_v2(byref(array), byref(ArrayDescription(2, 3, 3, 1))))
ARRAY = 3
def box(width, height):
    copy = Copy()
    copy.width, copy.height, copy.depth = width, height, 1
    return copy
def host_side(side, memory, pitch, x=0, y=0):
    side.type, side.host, side.pitch, side.height, side.x, side.y = HOST, memory, pitch, 9, x, y
def array_side(side):
    side.type, side.array = ARRAY, array.value
def add_box(graph, after, copy):
    node = c_void_p()
    ok(driver.cuGraphAddMemcpyNode(byref(node), graph, *handles(after), byref(copy), context))
    return node
def through_array(start, end, source_memory, target_memory):
    graph = new_graph()
    into, back = box(8, 3), box(8, 3)
    host_side(into.src, source_memory, 16, 4, 1); array_side(into.dst)
    array_side(back.src); host_side(back.dst, target_memory, 20, 8)
    first = add_box(graph, [], into)
    add_box(graph, [first], back)
    seen = Copy()
    ok(driver.cuGraphMemcpyNodeGetParams(first, byref(seen)))
    same((seen.src.host, seen.src.x, seen.src.y, seen.src.pitch), (source_memory, 4, 1, 16))
    same((seen.dst.type, seen.dst.array), (ARRAY, array.value))
    run(instantiate(graph))
wanted = [7, 7, 105, 106, 7, 7, 7, 109, 110, 7, 7, 7, 113, 114, 7]
through_array(source, target, address(source), address(target))
same(list(target), wanted)
memory = pinned(256)
ctypes.memmove(memory, source, 80)
ctypes.memset(memory + 128, 0, 60)
through_array(source, target, memory, memory + 128)
same([w for w in (c_uint * 15).from_address(memory + 128)], [w if w != 7 else 0 for w in wanted])
""",
    )


def test_captured_copies(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + HOST_COPIES
        + """
s, a = stream(), alloc(1 << 20)
given, got = (c_uint * (1 << 18))(), (c_uint * (1 << 18))()
memory = pinned(8)
view = ctypes.cast(memory, POINTER(c_uint))
ok(driver.cuStreamBeginCapture_v2(s, GLOBAL))
ok(driver.cuMemcpyHtoDAsync_v2(a, given, c_size_t(1 << 20), s))
ok(launch(s, a, 3))
ok(driver.cuMemcpyDtoHAsync_v2(got, a, c_size_t(1 << 20), s))
ok(driver.cuMemcpyDtoHAsync_v2(c_void_p(memory), a, c_size_t(4), s))
result, captured = end(s); ok(result)
executable = instantiate(c_void_p(captured))
for value in (10, 20):
    given[0], given[(1 << 18) - 1] = value, value + 1
    run(executable, s)
    same((got[0], got[(1 << 18) - 1], view[0]), (value + 3, value + 1, value + 3))
# Programs that capture again and again do not grow: more than the window would hold.
for _ in range(400):
    ok(driver.cuStreamBeginCapture_v2(s, GLOBAL))
    ok(driver.cuMemcpyHtoDAsync_v2(a, given, c_size_t(1 << 20), s))
    ok(driver.cuMemcpyDtoHAsync_v2(got, a, c_size_t(1 << 20), s))
    result, captured = end(s); ok(result)
    executable = instantiate(c_void_p(captured))
    ok(driver.cuGraphExecDestroy(executable)); ok(driver.cuGraphDestroy(c_void_p(captured)))
""",
    )
