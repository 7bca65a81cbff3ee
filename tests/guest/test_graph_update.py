"""New parameters for kernel nodes of executable graphs: waited for once a shape, never wrong."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.graph_program import NODES
from tests.guest.stream_program import PRELUDE

PROGRAM = (
    PRELUDE
    + NODES
    + """
from gpupool.guest import counters
def asked():
    return counters.read()["waits"].get("cuGraphExecKernelNodeSetParams_v2", 0)
graph, a = new_graph(), alloc(4)
zero = add_memset(graph, [], a, 0)
first = add_kernel(graph, [zero], a, 1)
second = add_kernel(graph, [first], a, 1)
executable = instantiate(graph)
def update(node, value, of=None, **shape):
    params = kernel_params(a, value)
    for name, each in shape.items():
        setattr(params, name, each)
    return driver.cuGraphExecKernelNodeSetParams_v2(of or executable, node, byref(params))
"""
)


def test_a_shape_is_asked_once(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PROGRAM
        + """
before = asked()
for value in range(50):
    ok(update(first, value)); ok(update(second, 1000 * value))
    run(executable); same(read(a), 1001 * value)
same(asked() - before, 2)
# Launches that nobody waits for between the updates run with what the update before them said.
s, places = stream(), [alloc(4) for _ in range(20)]
for value, place in enumerate(places):
    params = kernel_params(place, value)
    ok(driver.cuMemsetD32Async(place, 5, c_size_t(1), s))
    ok(driver.cuGraphExecKernelNodeSetParams_v2(executable, first, byref(params)))
    ok(driver.cuGraphLaunch(executable, s))
ok(driver.cuStreamSynchronize(s))
same([read(place) for place in places], [5 + value for value in range(20)])
same(asked() - before, 2)
""",
    )


def test_another_shape_is_asked_for(host: Host, transport: str) -> None:
    """Its error comes from the call itself, and the node stays as it was."""
    host.run_python(
        transport,
        PROGRAM
        + """
for _ in range(3): ok(update(first, 3))
before = asked()
assert update(first, 4, block=(4096, 1, 1)) != 0  # more threads than a block may have
assert update(first, 4, grid=(0, 1, 1)) != 0
same(asked() - before, 2)
ok(update(second, 0)); run(executable); same(read(a), 3)
# What a function may have has changed: asked again.
before = asked()
ok(update(first, 5)); same(asked() - before, 0)
MAX_DYNAMIC = 8
ok(driver.cuFuncSetAttribute(kernel, MAX_DYNAMIC, 4096))
ok(update(first, 6)); same(asked() - before, 1)
ok(update(first, 7)); same(asked() - before, 1)
run(executable); same(read(a), 7)
""",
    )


def test_what_is_gone_is_noticed(host: Host, transport: str) -> None:
    """By the call that names it, as long as the worker knows better than the program."""
    host.run_python(
        transport,
        PROGRAM
        + """
for _ in range(2): ok(update(first, 3)); ok(update(second, 4))
# A node that is destroyed; the others go on.
ok(driver.cuGraphDestroyNode(second))
assert update(second, 9) != 0
for _ in range(2): ok(update(first, 30))
run(executable); same(read(a), 34)
# An update from another graph.
class Update(ctypes.Structure):
    _fields_ = [("result", c_int), ("node", c_void_p), ("origin", c_void_p)]
graph, one = new_graph(), None
one = add_kernel(graph, [add_memset(graph, [], a, 0)], a, 8)
fresh = instantiate(graph)
for _ in range(2): ok(update(one, 8, of=fresh))
before, changed = asked(), Update(99)
ok(driver.cuGraphExecUpdate_v2(fresh, graph, byref(changed)))
ok(update(one, 9, of=fresh)); same(asked() - before, 1)
run(fresh); same(read(a), 9)
# The graph whose nodes they are, and the executable one.
ok(driver.cuGraphDestroy(graph))
assert update(one, 10, of=fresh) != 0
run(fresh); same(read(a), 9)
ok(driver.cuGraphExecDestroy(executable))
assert update(first, 11) != 0
ok(driver.cuCtxSynchronize())
""",
    )


CHILDREN = (
    PRELUDE
    + NODES
    + """
from gpupool.guest import counters
def asked():
    return counters.read()["waits"].get("cuGraphExecChildGraphNodeSetParams", 0)
a = alloc(4)
def adds(value):
    graph = new_graph()
    return graph, add_kernel(graph, [], a, value)
def update(child, of=None):
    return driver.cuGraphExecChildGraphNodeSetParams(of or executable, node, child)
one, kernel_of_one = adds(1)
ten, _ = adds(10)
graph, node = new_graph(), c_void_p()
zero = add_memset(graph, [], a, 0)
ok(driver.cuGraphAddChildGraphNode(byref(node), graph, *handles([zero]), one))
executable = instantiate(graph)
"""
)


def test_a_child_graph_is_asked_once(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        CHILDREN
        + """
before = asked()
for _ in range(30):
    ok(update(one)); run(executable); same(read(a), 1)
    ok(update(ten)); run(executable); same(read(a), 10)
same(asked() - before, 2)
""",
    )


def test_a_changed_child_graph_is_asked_for(host: Host, transport: str) -> None:
    """Its own nodes, a kernel's attributes, an update of the whole, another graph's end."""
    host.run_python(
        transport,
        CHILDREN
        + """
def twice(asks):
    before = asked()
    ok(update(one)); ok(update(one))
    same(asked() - before, asks)
twice(1)
params = kernel_params(a, 5)
ok(driver.cuGraphKernelNodeSetParams_v2(kernel_of_one, byref(params)))
twice(1); run(executable); same(read(a), 5)
MAX_DYNAMIC = 8
ok(driver.cuFuncSetAttribute(kernel, MAX_DYNAMIC, 4096)); twice(1)
ok(driver.cuGraphDestroy(ten)); twice(1)
assert update(ten) != 0
twice(0)
extra = add_kernel(one, [kernel_of_one], a, 7)  # two nodes now: not what the node has
for _ in range(2): assert update(one) != 0
run(executable); same(read(a), 5)
ok(driver.cuGraphDestroyNode(extra)); twice(1)
ok(driver.cuGraphDestroy(one))
for _ in range(2): assert update(one) != 0
ok(driver.cuCtxSynchronize())
""",
    )


def test_a_child_graph_of_more_than_kernels_is_asked_for(host: Host, transport: str) -> None:
    """A copy's memory may be gone, which is for the driver to say."""
    host.run_python(
        transport,
        CHILDREN
        + """
fill, outer, node = new_graph(), new_graph(), c_void_p()
add_memset(fill, [], a, 3)
ok(driver.cuGraphAddChildGraphNode(byref(node), outer, None, c_size_t(0), fill))
executable, before = instantiate(outer), asked()
for _ in range(3): ok(update(fill)); run(executable); same(read(a), 3)
same(asked() - before, 3)
""",
    )
