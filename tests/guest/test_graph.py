"""Graphs that a program builds node by node, asks about, changes and launches."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.graph_program import NODES
from tests.guest.stream_program import PRELUDE


def test_nodes_run_in_their_order(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + """
graph, a, b = new_graph(), alloc(4), alloc(4)
zero = add_memset(graph, [], a, 100)
one = add_kernel(graph, [zero], a, 1)
copy = add_copy(graph, [one], (DEVICE, a.value), (DEVICE, b.value), 4)
two = add_kernel(graph, [copy], b, 1)
last = c_void_p()
ok(driver.cuGraphAddEmptyNode(byref(last), graph, *handles([two])))
executable = instantiate(graph)
for _ in range(3): run(executable)
same((read(a), read(b)), (101, 102))
""",
    )


def test_asking_about_nodes(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + """
graph, a = new_graph(), alloc(4)
zero = add_memset(graph, [], a, 7)
left, right = add_kernel(graph, [zero], a, 1), add_kernel(graph, [zero], a, 2)
def kind(node):
    value = c_int(-1)
    ok(driver.cuGraphNodeGetType(node, byref(value)))
    return value.value
same([kind(n) for n in (zero, left, right)], [2, 0, 0])
def nodes_of(call, thing):
    count = c_size_t(0)
    ok(call(thing, None, byref(count)))
    out = (c_void_p * count.value)()
    ok(call(thing, out, byref(count)))
    return set(out)
same(nodes_of(driver.cuGraphGetNodes, graph), {zero.value, left.value, right.value})
same(nodes_of(driver.cuGraphGetRootNodes, graph), {zero.value})
same(nodes_of(driver.cuGraphNodeGetDependencies, left), {zero.value})
same(nodes_of(driver.cuGraphNodeGetDependentNodes, zero), {left.value, right.value})
count = c_size_t(0)
ok(driver.cuGraphGetEdges(graph, None, None, byref(count))); same(count.value, 2)
sources, targets = (c_void_p * 2)(), (c_void_p * 2)()
ok(driver.cuGraphGetEdges(graph, sources, targets, byref(count)))
same(set(zip(sources, targets)), {(zero.value, left.value), (zero.value, right.value)})
def pair(source, target):
    return (c_void_p * 1)(source), (c_void_p * 1)(target), c_size_t(1)
ok(driver.cuGraphAddDependencies(graph, *pair(left, right)))
same(nodes_of(driver.cuGraphNodeGetDependencies, right), {zero.value, left.value})
ok(driver.cuGraphRemoveDependencies(graph, *pair(zero, right)))
same(nodes_of(driver.cuGraphNodeGetDependencies, right), {left.value})
ok(driver.cuGraphDestroyNode(left))
same(nodes_of(driver.cuGraphGetNodes, graph), {zero.value, right.value})
some = (c_void_p * 5)(1, 2, 3, 4, 5)
count = c_size_t(5)
ok(driver.cuGraphGetNodes(graph, some, byref(count)))
same(count.value, 2)
params = MemsetParams()
ok(driver.cuGraphMemsetNodeGetParams(zero, byref(params)))
same((params.dst, params.value, params.size, params.width, params.height), (a.value, 7, 4, 1, 1))
got = KernelParams()
ok(driver.cuGraphKernelNodeGetParams_v2(right, byref(got)))
same((got.func, tuple(got.grid), tuple(got.block)), (kernel.value, (1, 1, 1), (1, 1, 1)))
pointers = ctypes.cast(got.params, POINTER(c_void_p))
same(ctypes.cast(pointers[0], POINTER(c_uint64))[0], a.value)
same(ctypes.cast(pointers[1], POINTER(c_uint))[0], 2)
b = alloc(4)
copy = add_copy(graph, [], (DEVICE, a.value), (DEVICE, b.value), 4)
seen = Copy()
ok(driver.cuGraphMemcpyNodeGetParams(copy, byref(seen)))
same((seen.src.device, seen.dst.device), (a.value, b.value))
same((seen.width, seen.height, seen.depth), (4, 1, 1))
""",
    )


def test_changing_nodes(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + """
graph, a, b = new_graph(), alloc(4), alloc(4)
zero = add_memset(graph, [], a, 0)
add = add_kernel(graph, [zero], a, 1)
copy = add_copy(graph, [add], (DEVICE, a.value), (DEVICE, b.value), 4)
ok(driver.cuGraphKernelNodeSetParams_v2(add, byref(kernel_params(a, 2))))
executable = instantiate(graph)
run(executable); same((read(a), read(b)), (2, 2))
ok(driver.cuGraphExecKernelNodeSetParams_v2(executable, add, byref(kernel_params(a, 9))))
run(executable); same((read(a), read(b)), (9, 9))
fill = MemsetParams(a.value, 0, 100, 4, 1, 1)
ok(driver.cuGraphExecMemsetNodeSetParams(executable, zero, byref(fill), context))
run(executable); same((read(a), read(b)), (109, 109))
on = c_uint(9)
ok(driver.cuGraphNodeGetEnabled(executable, add, byref(on))); same(on.value, 1)
ok(driver.cuGraphNodeSetEnabled(executable, add, 0))
run(executable); same((read(a), read(b)), (100, 100))
ok(driver.cuGraphNodeSetEnabled(executable, add, 1))
c = alloc(4)
elsewhere = copy_params((DEVICE, a.value), (DEVICE, c.value), 4)
ok(driver.cuGraphExecMemcpyNodeSetParams(executable, copy, byref(elsewhere), context))
run(executable); same((read(a), read(b), read(c)), (109, 100, 109))
# An update takes over the parameters of a graph of the same shape, and refuses another shape.
ok(driver.cuGraphKernelNodeSetParams_v2(add, byref(kernel_params(a, 50))))
class Update(ctypes.Structure):
    _fields_ = [("result", c_int), ("node", c_void_p), ("origin", c_void_p)]
update = Update(99)
ok(driver.cuGraphExecUpdate_v2(executable, graph, byref(update))); same(update.result, 0)
run(executable); same(read(b), 50)
other = new_graph()
add_memset(other, [], a, 0)
same(driver.cuGraphExecUpdate_v2(executable, other, byref(update)), 910)
assert update.result != 0
run(executable); same(read(b), 50)
flags = c_uint64(9)
ok(driver.cuGraphExecGetFlags(executable, byref(flags))); same(flags.value, 0)
""",
    )


def test_copies_with_pinned_memory(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + """
if os.environ.get("GPUPOOL_TRANSPORT") == "tcp":
    print("pinned memory is staged over a stream transport"); raise SystemExit
graph, a = new_graph(), alloc(4)
pinned = c_void_p()
ok(driver.cuMemHostAlloc(byref(pinned), c_size_t(64), 0))
view = ctypes.cast(pinned, POINTER(c_uint))
into = add_copy(graph, [], (HOST, pinned.value), (DEVICE, a.value), 4)
add = add_kernel(graph, [into], a, 5)
back = add_copy(graph, [add], (DEVICE, a.value), (HOST, pinned.value + 4), 4)
executable = instantiate(graph)
for value in (1, 20, 300):
    view[0] = value
    run(executable)
    same(view[1], value + 5)
seen = Copy()
ok(driver.cuGraphMemcpyNodeGetParams(into, byref(seen)))
same((seen.src.type, seen.src.host), (HOST, pinned.value))
""",
    )


def test_clones_and_child_graphs(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + """
child, a = new_graph(), alloc(4)
inner = add_kernel(child, [], a, 1)
graph = new_graph()
zero = add_memset(graph, [], a, 0)
nodes, previous = [], zero
for _ in range(3):
    node = c_void_p()
    ok(driver.cuGraphAddChildGraphNode(byref(node), graph, *handles([previous]), child))
    previous = node
embedded = c_void_p()
ok(driver.cuGraphChildGraphNodeGetGraph(previous, byref(embedded)))
assert embedded.value and embedded.value != child.value
again = c_void_p()
ok(driver.cuGraphChildGraphNodeGetGraph(previous, byref(again))); same(again.value, embedded.value)
count = c_size_t(0)
ok(driver.cuGraphGetNodes(embedded, None, byref(count))); same(count.value, 1)
clone, twin = c_void_p(), c_void_p()
ok(driver.cuGraphClone(byref(clone), graph))
ok(driver.cuGraphNodeFindInClone(byref(twin), zero, clone))
assert twin.value not in (None, zero.value)
ok(driver.cuGraphDestroy(child))
executable = instantiate(graph)
ok(driver.cuGraphDestroy(graph))
run(executable); same(read(a), 3)
second = instantiate(clone)
ok(driver.cuGraphDestroy(clone))
run(second); same(read(a), 3)
""",
    )


def test_launches_are_ordinary_work(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + """
graph, a = new_graph(), alloc(4)
add_kernel(graph, [], a, 1)
executable = instantiate(graph)
s, e = stream(), event(2)
hold(s)
for _ in range(10): ok(driver.cuGraphLaunch(executable, s))
ok(driver.cuEventRecord(e, s))
same(driver.cuStreamQuery(s), NOT_READY); same(driver.cuEventQuery(e), NOT_READY)
ok(driver.cuGraphExecDestroy(executable))  # those in flight go on
ok(driver.cuGraphDestroy(graph))
let_go()
ok(driver.cuEventSynchronize(e))
same(read(a), 10)
# A launch does not become part of a graph.
graph = new_graph(); add_kernel(graph, [], a, 1); executable = instantiate(graph)
ok(driver.cuGraphUpload(executable, s)); ok(driver.cuStreamSynchronize(s))
ok(driver.cuStreamBeginCapture_v2(s, RELAXED))
same(driver.cuGraphLaunch(executable, s), UNSUPPORTED)
same(status(s), INVALID); same(end(s), (INVALIDATED, None))
run(executable, None); same(read(a), 11)
""",
    )


def test_event_nodes(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + """
graph, a, e, s = new_graph(), alloc(4), event(2), stream()
add = add_kernel(graph, [], a, 1)
record = c_void_p()
ok(driver.cuGraphAddEventRecordNode(byref(record), graph, *handles([add]), e))
waiting, node, after = new_graph(), c_void_p(), None
ok(driver.cuGraphAddEventWaitNode(byref(node), waiting, *handles([]), e))
add_kernel(waiting, [node], a, 10)
first, second = instantiate(graph), instantiate(waiting)
other = stream()
hold(s)
ok(driver.cuGraphLaunch(first, s))
ok(driver.cuGraphLaunch(second, other))
time.sleep(0.02)
same(driver.cuStreamQuery(other), NOT_READY); same(driver.cuEventQuery(e), NOT_READY)
let_go()
ok(driver.cuStreamSynchronize(other))
same(read(a), 11)
ok(driver.cuEventSynchronize(e)); ok(driver.cuEventQuery(e))
""",
    )


def test_any_kind_of_node(host: Host, transport: str) -> None:
    """cuGraphAddNode takes a union of everything."""
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + """
graph, a = new_graph(), alloc(4)
def add(after, params): return add_any(graph, after, params)
zero = add([], any_of(2, bytes(MemsetParams(a.value, 0, 30, 4, 1, 1)) + bytes(context)))
params = kernel_params(a, 4)
plus = add([zero], any_of(0, bytes(params)))
add([plus], any_of(5))
executable = instantiate(graph)
run(executable); same(read(a), 34)
params = kernel_params(a, 6)
ok(driver.cuGraphExecNodeSetParams(executable, plus, byref(any_of(0, bytes(params)))))
run(executable); same(read(a), 36)
""",
    )


def test_kernels_of_libraries(host: Host, transport: str) -> None:
    """A CUkernel may stand where a CUfunction does, in nodes too."""
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + """
library, of_library = c_void_p(), c_void_p()
ok(driver.cuLibraryLoadData(byref(library), PTX, None, None, 0, None, None, 0))
ok(driver.cuLibraryGetKernel(byref(of_library), library, b"add"))
a, s = alloc(4), stream()
def params_of(function, kern, what):
    params = kernel_params(a, what)
    params.func, params.kern, params.ctx = function, kern, context.value
    return params
graph, first, second = new_graph(), c_void_p(), c_void_p()
params = params_of(None, of_library.value, 1)
ok(driver.cuGraphAddKernelNode_v2(byref(first), graph, *handles([]), byref(params)))
params = params_of(kernel.value, None, 10)
ok(driver.cuGraphAddKernelNode_v2(byref(second), graph, *handles([first]), byref(params)))
executable = instantiate(graph)
run(executable, s); same(read(a), 11)
params = params_of(None, of_library.value, 100)
ok(driver.cuGraphExecKernelNodeSetParams_v2(executable, first, byref(params)))
run(executable, s); same(read(a), 121)
# Captured, and asked for afterwards.
ok(driver.cuStreamBeginCapture_v2(s, GLOBAL))
pointers, keep = parameters(a, 7)
ok(driver.cuLaunchKernel(of_library, 1, 1, 1, 1, 1, 1, 0, s, pointers, None))
result, captured = end(s); ok(result)
found, count = (c_void_p * 1)(), c_size_t(1)
ok(driver.cuGraphGetNodes(c_void_p(captured), found, byref(count)))
got = KernelParams()
ok(driver.cuGraphKernelNodeGetParams_v2(c_void_p(found[0]), byref(got)))
assert got.func or got.kern
pointers = ctypes.cast(got.params, POINTER(c_void_p))
same(ctypes.cast(pointers[1], POINTER(c_uint))[0], 7)
# What was asked for can be given back, as programs that edit captured graphs do.
ok(driver.cuGraphKernelNodeSetParams_v2(c_void_p(found[0]), byref(got)))
run(instantiate(c_void_p(captured)), s); same(read(a), 128)
""",
    )


def test_stale_graphs(host: Host, transport: str) -> None:
    """Undefined in CUDA; here a stale handle is recognised."""
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + """
graph, a = new_graph(), alloc(4)
node = add_kernel(graph, [], a, 1)
executable = instantiate(graph)
ok(driver.cuGraphDestroy(graph)); ok(driver.cuGraphExecDestroy(executable))
kind = c_int()
assert driver.cuGraphNodeGetType(node, byref(kind)) in (INVALID_VALUE, INVALID_HANDLE)
same(driver.cuGraphDestroy(graph), INVALID_VALUE)
same(driver.cuGraphExecDestroy(executable), INVALID_VALUE)
same(driver.cuGraphLaunch(executable, _opener), INVALID_VALUE)
ok(driver.cuCtxSynchronize())
""",
    )


def test_data_of_edges(host: Host, transport: str) -> None:
    """Programmatic edges, and that nobody overlooks them."""
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + """
class Edge(ctypes.Structure):
    _fields_ = [(n, ctypes.c_ubyte) for n in ("from_port", "to_port", "type")] + [
        ("reserved", ctypes.c_ubyte * 5)]
graph, a = new_graph(), alloc(4)
first, second = add_kernel(graph, [], a, 1), add_kernel(graph, [], a, 2)
def pair(source, target): return (c_void_p * 1)(source), (c_void_p * 1)(target)
programmatic = (Edge * 1)(Edge(1, 0, 1))
ok(driver.cuGraphAddDependencies_v2(graph, *pair(first, second), programmatic, c_size_t(1)))
count = c_size_t(1)
sources, targets, edges = (c_void_p * 1)(), (c_void_p * 1)(), (Edge * 1)()
ok(driver.cuGraphGetEdges_v2(graph, sources, targets, edges, byref(count)))
same((sources[0], targets[0], edges[0].from_port, edges[0].type), (first.value, second.value, 1, 1))
LOSSY = 402
same(driver.cuGraphGetEdges(graph, sources, targets, byref(count)), LOSSY)
ok(driver.cuGraphNodeGetDependencies_v2(second, sources, edges, byref(count)))
same((sources[0], edges[0].type), (first.value, 1))
ok(driver.cuGraphNodeGetDependentNodes_v2(first, targets, edges, byref(count)))
same((targets[0], edges[0].type), (second.value, 1))
run(instantiate(graph)); same(read(a), 3)
third = c_void_p()
params = kernel_params(a, 4)
ok(driver.cuGraphAddNode_v2(byref(third), graph, (c_void_p * 1)(second), programmatic, c_size_t(1),
                            byref(any_of(0, bytes(params)))))
ok(driver.cuGraphNodeGetDependencies_v2(third, sources, edges, byref(count)))
same((sources[0], edges[0].from_port), (second.value, 1))
ok(driver.cuGraphRemoveDependencies_v2(graph, *pair(first, second), programmatic, c_size_t(1)))
run(instantiate(graph)); same(read(a), 10)
""",
    )
