"""User objects of graphs: kept as long as a graph, or what was made of it, needs them."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.graph_program import NODES
from tests.guest.stream_program import PRELUDE

# make(number): a user object whose destructor notes the number in `ended`.
OBJECTS = (
    PRELUDE
    + NODES
    + """
ended = []
destroy = ctypes.CFUNCTYPE(None, c_void_p)(lambda data: ended.append(data))
def make(number, references=1):
    made = c_void_p()
    ok(driver.cuUserObjectCreate(byref(made), c_void_p(number), destroy, references, 1))
    return made
"""
)


def test_user_objects(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        OBJECTS
        + """
one = make(1, 2)
ok(driver.cuUserObjectRelease(one, 1)); time.sleep(0.05); same(ended, [])
ok(driver.cuUserObjectRetain(one, 1))
ok(driver.cuUserObjectRelease(one, 2)); until(lambda: ended == [1], "the destructor")
# A graph, its clone and its executable keep an object.
graph, a = new_graph(), alloc(4)
add_kernel(graph, [], a, 1)
two = make(2)
ok(driver.cuGraphRetainUserObject(graph, two, 1, 1))  # moved: the graph owns it
executable = instantiate(graph)
ok(driver.cuGraphDestroy(graph)); time.sleep(0.05); same(ended, [1])
s = stream()
hold(s)
ok(driver.cuGraphLaunch(executable, s))
ok(driver.cuGraphExecDestroy(executable)); time.sleep(0.05); same(ended, [1])
let_go()
until(lambda: ended == [1, 2], "the destructor after the last launch")
graph, three = new_graph(), make(3)
ok(driver.cuGraphRetainUserObject(graph, three, 2, 0))
ok(driver.cuUserObjectRelease(three, 1))
ok(driver.cuGraphReleaseUserObject(graph, three, 1)); time.sleep(0.05)
same(ended, [1, 2])
ok(driver.cuGraphDestroy(graph)); until(lambda: ended == [1, 2, 3], "the destructor")
""",
    )


def test_user_objects_of_graphs_that_are_not_the_programs_own(host: Host, transport: str) -> None:
    """One still being captured, and one inside another: they go with what holds them."""
    host.run_python(
        transport,
        OBJECTS
        + """
s, status, graph = stream(), c_int(), c_void_p()
ok(driver.cuStreamBeginCapture_v2(s, 0))
ok(driver.cuStreamGetCaptureInfo_v2(s, byref(status), None, byref(graph), None, None))
ok(driver.cuGraphRetainUserObject(graph, make(1), 1, 1))
captured = c_void_p()
ok(driver.cuStreamEndCapture(s, byref(captured)))
same(captured.value, graph.value)
time.sleep(0.05); same(ended, [])
ok(driver.cuGraphDestroy(captured)); same(ended, [1])
parent, child = new_graph(), new_graph()
add_kernel(child, [], alloc(4), 1)
node, inner = c_void_p(), c_void_p()
ok(driver.cuGraphAddChildGraphNode(byref(node), parent, None, c_size_t(0), child))
ok(driver.cuGraphChildGraphNodeGetGraph(node, byref(inner)))
ok(driver.cuGraphRetainUserObject(inner, make(2), 1, 1))
executable = instantiate(parent)
ok(driver.cuGraphDestroy(parent)); time.sleep(0.05); same(ended, [1])  # the executable has it
ok(driver.cuGraphExecDestroy(executable)); same(ended, [1, 2])
same(driver.cuGraphRetainUserObject(c_void_p(12345), make(3), 1, 1), 1)
""",
    )


def test_user_objects_of_copies_inside_graphs(host: Host, transport: str) -> None:
    """Each graph inside another has references of its own, which it alone can release."""
    host.run_python(
        transport,
        OBJECTS
        + """
def embed(parent, child):
    node, inner = c_void_p(), c_void_p()
    ok(driver.cuGraphAddChildGraphNode(byref(node), parent, None, c_size_t(0), child))
    ok(driver.cuGraphChildGraphNodeGetGraph(node, byref(inner)))
    return node, inner
def graph_with(number):
    graph, made = new_graph(), make(number)
    add_kernel(graph, [], alloc(4), 1)
    ok(driver.cuGraphRetainUserObject(graph, made, 1, 1))
    return graph, made
# A copy has a reference, and the graph around it has none.
child, one = graph_with(1)
parent = new_graph()
node, inner = embed(parent, child)
ok(driver.cuGraphDestroy(child)); time.sleep(0.05); same(ended, [])
same(driver.cuGraphReleaseUserObject(parent, one, 1), INVALID_VALUE)
ok(driver.cuGraphReleaseUserObject(inner, one, 1)); until(lambda: ended == [1], "the release")
ok(driver.cuGraphDestroy(parent))
# Two levels deep, found by the driver's own counterpart of a node; also in a clone of the whole.
child, two = graph_with(2)
middle, outer, clone = new_graph(), new_graph(), c_void_p()
add_kernel(middle, [], alloc(4), 1)
middle_node, _ = embed(middle, child)
outer_node, middle_copy = embed(outer, middle)
ok(driver.cuGraphClone(byref(clone), outer))
twin, deep = c_void_p(), c_void_p()
ok(driver.cuGraphNodeFindInClone(byref(twin), middle_node, middle_copy))
ok(driver.cuGraphChildGraphNodeGetGraph(twin, byref(deep)))
for gone in child, middle, clone:
    ok(driver.cuGraphDestroy(gone))
time.sleep(0.05); same(ended, [1])
same(driver.cuGraphReleaseUserObject(middle_copy, two, 1), INVALID_VALUE)
ok(driver.cuGraphReleaseUserObject(deep, two, 1)); until(lambda: ended == [1, 2], "two levels deep")
ok(driver.cuGraphDestroy(outer))
# They go with the node that holds the graph, or when the last executable does.
child, _ = graph_with(3)
middle, outer = new_graph(), new_graph()
embed(middle, child)
outer_node, _ = embed(outer, middle)
executable = instantiate(outer)
for gone in child, middle:
    ok(driver.cuGraphDestroy(gone))
ok(driver.cuGraphDestroyNode(outer_node)); time.sleep(0.05); same(ended, [1, 2])
ok(driver.cuGraphExecDestroy(executable)); until(lambda: ended == [1, 2, 3], "the executable")
ok(driver.cuGraphDestroy(outer))
# An executable has the objects of the graphs inside its own graph, not those of others.
child, _ = graph_with(4)
parent, other = new_graph(), new_graph()
embed(parent, child)
add_kernel(other, [], alloc(4), 1)
executable = instantiate(other)
ok(driver.cuGraphDestroy(child))
ok(driver.cuGraphDestroy(parent)); until(lambda: ended == [1, 2, 3, 4], "the graph that holds it")
ok(driver.cuGraphExecDestroy(executable))
""",
    )


def test_an_update_replaces_the_user_objects_of_an_executable(host: Host, transport: str) -> None:
    """The old ones go after the last launch that began before the update."""
    host.run_python(
        transport,
        OBJECTS
        + """
class UpdateInfo(ctypes.Structure):
    _fields_ = [("result", c_int), ("node", c_void_p), ("from_node", c_void_p)]
def graph_with(number):
    graph = new_graph()
    add_kernel(graph, [], alloc(4), 1)
    ok(driver.cuGraphRetainUserObject(graph, make(number), 1, 1))
    return graph
old, new, info = graph_with(1), graph_with(2), UpdateInfo()
executable = instantiate(old)
ok(driver.cuGraphDestroy(old))
s = stream()
hold(s)
ok(driver.cuGraphLaunch(executable, s))
ok(driver.cuGraphExecUpdate_v2(executable, new, byref(info)))
ok(driver.cuGraphDestroy(new)); time.sleep(0.05); same(ended, [])
let_go()
until(lambda: ended == [1], "the last launch of what was")
ok(driver.cuGraphLaunch(executable, s)); ok(driver.cuStreamSynchronize(s))
time.sleep(0.05); same(ended, [1])
ok(driver.cuGraphExecDestroy(executable)); until(lambda: ended == [1, 2], "the executable")
""",
    )
