"""Nodes with something that only the client has: events and host functions."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.graph_program import NODES
from tests.guest.stream_program import PRELUDE

EVENTS = """
def record_node(graph, after, e):
    node = c_void_p()
    ok(driver.cuGraphAddEventRecordNode(byref(node), graph, *handles(after), e))
    return node
def event_of(node, which="Record"):
    found = c_void_p(77)
    ok(getattr(driver, f"cuGraphEvent{which}NodeGetEvent")(node, byref(found)))
    return found.value
"""


def test_the_event_of_a_node(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + EVENTS
        + """
graph, one, two, three = new_graph(), event(2), event(2), event(2)
record, wait = record_node(graph, [], one), c_void_p()
ok(driver.cuGraphAddEventWaitNode(byref(wait), graph, *handles([record]), one))
same((event_of(record), event_of(wait, "Wait")), (one.value, one.value))
ok(driver.cuGraphEventRecordNodeSetEvent(record, two))
ok(driver.cuGraphEventWaitNodeSetEvent(wait, two))
same((event_of(record), event_of(wait, "Wait")), (two.value, two.value))
out = c_void_p()
same(driver.cuGraphEventRecordNodeGetEvent(wait, byref(out)), INVALID_VALUE)
executable, s = instantiate(graph), stream()
# A launch records the event that the node had when the graph was instantiated ...
ok(driver.cuGraphEventRecordNodeSetEvent(record, three))
hold(s)
ok(driver.cuGraphLaunch(executable, s))
same([driver.cuEventQuery(e) for e in (one, two, three)], [0, NOT_READY, 0])
let_go(); ok(driver.cuEventSynchronize(two))
# ... or has been given since, in the executable alone.
ok(driver.cuGraphExecEventRecordNodeSetEvent(executable, record, one))
ok(driver.cuGraphExecEventWaitNodeSetEvent(executable, wait, one))
hold(s)
ok(driver.cuGraphLaunch(executable, s))
same([driver.cuEventQuery(e) for e in (one, two, three)], [NOT_READY, 0, 0])
let_go(); ok(driver.cuStreamSynchronize(s))
same(event_of(record), three.value)
params = any_of(7, bytes(two))
ok(driver.cuGraphNodeSetParams(record, byref(params))); same(event_of(record), two.value)
""",
    )


def test_host_functions_of_nodes(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + """
import gc
FUNCTION = ctypes.CFUNCTYPE(None, c_void_p)
ran = []
note = FUNCTION(lambda data: ran.append(data))
class HostParams(ctypes.Structure):
    _fields_ = [("fn", c_void_p), ("data", c_void_p)]
def host_params(number):
    return HostParams(ctypes.cast(note, c_void_p).value, number)
def add_host(graph, after, number):
    node = c_void_p()
    ok(driver.cuGraphAddHostNode(byref(node), graph, *handles(after), byref(host_params(number))))
    return node
def ran_by(executable):
    ran.clear()
    run(executable)
    return list(ran)
graph = new_graph()
first = add_host(graph, [], 1)
second = add_host(graph, [first], 2)
executable = instantiate(graph)
ok(driver.cuGraphHostNodeSetParams(first, byref(host_params(10))))
got = HostParams()
ok(driver.cuGraphHostNodeGetParams(first, byref(got))); same(got.data, 10)
same(ran_by(executable), [1, 2])
clone = c_void_p()
ok(driver.cuGraphClone(byref(clone), graph))
later = instantiate(graph)
same(ran_by(later), [10, 2])
# Each keeps what it needs, whatever becomes of the others.
ok(driver.cuGraphDestroy(graph))
of_clone = instantiate(clone)
ok(driver.cuGraphDestroy(clone))
same(ran_by(of_clone), [10, 2]); same(ran_by(executable), [1, 2])
# The same function node again and again: nothing is kept of those before.
graph = new_graph()
node = add_host(graph, [], 0)
executable = instantiate(graph)
for number in range(1, 700):
    ok(driver.cuGraphHostNodeSetParams(node, byref(host_params(number))))
    ok(driver.cuGraphExecHostNodeSetParams(executable, node, byref(host_params(number))))
same(ran_by(executable), [699]); same(ran_by(instantiate(graph)), [699])
ok(driver.cuGraphNodeSetParams(node, byref(any_of(3, bytes(host_params(5))))))
same(ran_by(instantiate(graph)), [5])
# Many nodes, so that what is held for those of destroyed graphs is given up meanwhile.
for _ in range(3):
    graph, last = new_graph(), []
    for number in range(300):
        last = [add_host(graph, last, 0)]
        ok(driver.cuGraphHostNodeSetParams(last[0], byref(host_params(number + 1))))
    gc.collect()
    executable = instantiate(graph)
    ok(driver.cuGraphDestroy(graph))
    same(ran_by(executable), list(range(1, 301)))
    ok(driver.cuGraphExecDestroy(executable))
""",
    )


def test_nodes_in_child_graphs(host: Host, transport: str) -> None:
    """A child graph can be changed where it lies; what it then refers to belongs to the launch."""
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + EVENTS
        + """
FUNCTION = ctypes.CFUNCTYPE(None, c_void_p)
ran = []
note = FUNCTION(lambda data: ran.append(data))
class HostParams(ctypes.Structure):
    _fields_ = [("fn", c_void_p), ("data", c_void_p)]
host_params = HostParams(ctypes.cast(note, c_void_p).value, 9)
e, s = event(2), stream()
graph, child, node, embedded = new_graph(), new_graph(), c_void_p(), c_void_p()
ok(driver.cuGraphAddChildGraphNode(byref(node), graph, *handles([]), child))
ok(driver.cuGraphDestroy(child))
ok(driver.cuGraphChildGraphNodeGetGraph(node, byref(embedded)))
inner = c_void_p()
ok(driver.cuGraphAddHostNode(byref(inner), embedded, *handles([]), byref(host_params)))
record_node(embedded, [inner], e)
executable = instantiate(graph)
hold(s)
ok(driver.cuGraphLaunch(executable, s)); same(driver.cuEventQuery(e), NOT_READY)
let_go(); ok(driver.cuStreamSynchronize(s)); same(ran, [9]); ok(driver.cuEventQuery(e))
# A graph that is moved into its parent keeps its handle and is the parent's to destroy.
graph, child, a = new_graph(), new_graph(), alloc(4)
add_kernel(child, [], a, 3)
class Child(ctypes.Structure):
    _fields_ = [("graph", c_void_p), ("ownership", c_int)]
node, params = c_void_p(), any_of(4, bytes(Child(child.value, 1)))
result = driver.cuGraphAddNode(byref(node), graph, *handles([]), byref(params))
if result == NOT_SUPPORTED: raise SystemExit  # drivers before 12.9
ok(result)
add_kernel(child, [], a, 4)
same(driver.cuGraphDestroy(child), INVALID_VALUE)
run(instantiate(graph)); same(read(a), 7)
ok(driver.cuGraphDestroy(graph))
""",
    )
