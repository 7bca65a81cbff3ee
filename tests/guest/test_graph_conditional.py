"""Graphs inside graphs that run by a value which kernels set."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.graph_program import NODES
from tests.guest.stream_program import PRELUDE

# count_down(left, handle): takes 1 from the number and sets the condition to what is left.
# choose(handle, value): sets the condition.
CONDITIONAL = r"""
import importlib.util, pathlib
SETTERS = b'''
.version 8.4
.target sm_70
.address_size 64
.extern .func cudaGraphSetConditional(.param .b64 handle, .param .b32 value);
.visible .entry count_down(.param .u64 left, .param .u64 handle)
{
  .reg .u64 %rd<4>;
  .reg .u32 %r<3>;
  ld.param.u64 %rd1, [left];
  ld.param.u64 %rd3, [handle];
  cvta.to.global.u64 %rd2, %rd1;
  ld.global.u32 %r1, [%rd2];
  sub.u32 %r2, %r1, 1;
  st.global.u32 [%rd2], %r2;
  { .param .b64 first; .param .b32 second;
    st.param.b64 [first], %rd3;
    st.param.b32 [second], %r2;
    call.uni cudaGraphSetConditional, (first, second); }
  ret;
}
.visible .entry choose(.param .u64 handle, .param .u32 value)
{
  .reg .u64 %rd<2>;
  .reg .u32 %r<2>;
  ld.param.u64 %rd1, [handle];
  ld.param.u32 %r1, [value];
  { .param .b64 first; .param .b32 second;
    st.param.b64 [first], %rd1;
    st.param.b32 [second], %r1;
    call.uni cudaGraphSetConditional, (first, second); }
  ret;
}
'''
def device_runtime():
    # The function is in a library that comes with the CUDA runtime.
    for place in importlib.util.find_spec("nvidia").submodule_search_locations:
        for found in pathlib.Path(place).glob("*/lib/libcudadevrt.a"): return str(found).encode()
    raise AssertionError("no libcudadevrt.a beside the CUDA runtime")
def load_setters():
    module = c_void_p()
    if os.environ.get("GPUPOOL_TEST_GPU") != "nvidia":  # the software GPU has it built in
        ok(driver.cuModuleLoadData(byref(module), SETTERS), "SETTERS")
        return module
    link, image, size = c_void_p(), c_void_p(), c_size_t()
    ok(driver.cuLinkCreate_v2(0, None, None, byref(link)))
    ok(driver.cuLinkAddData_v2(link, 1, SETTERS, c_size_t(len(SETTERS)), b"setters", 0, None, None))
    ok(driver.cuLinkAddFile_v2(link, 4, device_runtime(), 0, None, None), "libcudadevrt.a")
    ok(driver.cuLinkComplete(link, byref(image), byref(size)), "link")
    ok(driver.cuModuleLoadData(byref(module), image))
    return module
_setters = load_setters()
def setter(name):
    function = c_void_p()
    ok(driver.cuModuleGetFunction(byref(function), _setters, name))
    return function
count_down, choose = setter(b"count_down"), setter(b"choose")
def add_setter(graph, after, function, first, second):
    pointers = (c_void_p * 2)(ctypes.addressof(first), ctypes.addressof(second))
    one, node = (1, 1, 1), c_void_p()
    params = KernelParams(function.value, one, one, 0, ctypes.addressof(pointers), None, None, None)
    ok(driver.cuGraphAddKernelNode_v2(byref(node), graph, *handles(after), byref(params)))
    return node
def condition(graph, value=0, assign=0):
    handle = c_uint64()
    ok(driver.cuGraphConditionalHandleCreate(byref(handle), graph, context, value, assign))
    return handle
class Conditional(ctypes.Structure):
    _fields_ = [("handle", c_uint64), ("type", c_int), ("size", c_uint), ("graphs", c_void_p),
                ("context", c_void_p)]
IF, WHILE, SWITCH = range(3)
def add_conditional(graph, after, handle, what, size):
    params = any_of(13, bytes(Conditional(handle.value, what, size, None, context.value)))
    node = add_any(graph, after, params)
    given = Conditional.from_buffer_copy(bytes(params.body)[:ctypes.sizeof(Conditional)])
    bodies = ctypes.cast(given.graphs, POINTER(c_void_p))
    return node, [c_void_p(bodies[i]) for i in range(size)]
"""


def test_while(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + CONDITIONAL
        + """
graph, left, rounds = new_graph(), alloc(4), alloc(4)
handle = condition(graph, 1, 1)
zero = add_memset(graph, [], left, 5)
node, (body,) = add_conditional(graph, [zero], handle, WHILE, 1)
same(kind(node.value), 13)
inner = add_kernel(body, [], rounds, 1)
add_setter(body, [inner], count_down, left, handle)
add_kernel(graph, [node], rounds, 100)
executable = instantiate(graph)
run(executable); same((read(left), read(rounds)), (0, 105))
run(executable); same((read(left), read(rounds)), (0, 210))
ok(driver.cuGraphDestroy(graph))
run(executable); same(read(rounds), 315)
count = c_size_t()
assert driver.cuGraphGetNodes(body, None, byref(count)) in (INVALID_VALUE, INVALID_HANDLE)
""",
    )


def test_if_and_switch(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + CONDITIONAL
        + """
def built(what, size, value):
    graph, a = new_graph(), alloc(4)
    handle = condition(graph)
    first = add_setter(graph, [], choose, handle, c_uint(value))
    node, bodies = add_conditional(graph, [first], handle, what, size)
    for i, body in enumerate(bodies): add_kernel(body, [], a, i + 1)
    run(instantiate(graph))
    return read(a)
same([built(IF, 1, v) for v in (0, 1, 7)], [0, 1, 1])
same([built(SWITCH, 3, v) for v in range(4)], [1, 2, 3, 0])
same([built(IF, 2, v) for v in (0, 1)], [2, 1])
graph = new_graph()
handle = condition(graph)
node = c_void_p()
params = any_of(13, bytes(Conditional(handle.value, WHILE, 2, None, context.value)))
assert driver.cuGraphAddNode(byref(node), graph, *handles([]), byref(params)) != 0
params = any_of(13, bytes(Conditional(handle.value, WHILE, 0, None, context.value)))
assert driver.cuGraphAddNode(byref(node), graph, *handles([]), byref(params)) != 0
""",
    )


def test_a_body_from_a_capture(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + CONDITIONAL
        + """
graph, left, rounds, s = new_graph(), alloc(4), alloc(4), stream()
handle = condition(graph, 1, 1)
zero = add_memset(graph, [], left, 4)
node, (body,) = add_conditional(graph, [zero], handle, WHILE, 1)
ok(driver.cuStreamBeginCaptureToGraph(s, body, None, None, c_size_t(0), GLOBAL))
ok(launch(s, rounds, 10))
pointers = (c_void_p * 2)(ctypes.addressof(left), ctypes.addressof(handle))
ok(driver.cuLaunchKernel(count_down, 1, 1, 1, 1, 1, 1, 0, s, pointers, None))
result, captured = end(s); ok(result); same(captured, body.value)
same(driver.cuGraphDestroy(body), INVALID_VALUE)  # the node's
same(len(nodes_of(body)), 2)
run(instantiate(graph)); same((read(left), read(rounds)), (0, 40))
""",
    )
