"""Launch attributes that only a GPU of compute capability 9.0 or later can honour."""

from __future__ import annotations

import pytest

from tests.conftest import Host
from tests.guest.graph_program import NODES
from tests.guest.stream_program import PRELUDE

pytestmark = pytest.mark.gpu

# where_am_i(out): each block notes the size of its cluster and its place in it.
# after(a, b): waits for the kernel before, then copies a number and adds 1.
LAUNCHES = r"""
HOPPER = b'''
.version 8.0
.target sm_90
.address_size 64
.visible .entry where_am_i(.param .u64 out)
{
  .reg .u64 %d<4>;
  .reg .u32 %r<6>;
  ld.param.u64 %d1, [out];
  cvta.to.global.u64 %d2, %d1;
  mov.u32 %r1, %ctaid.x;
  mul.wide.u32 %d3, %r1, 4;
  add.u64 %d2, %d2, %d3;
  mov.u32 %r2, %cluster_nctarank;
  mov.u32 %r3, %cluster_ctarank;
  mad.lo.u32 %r4, %r2, 100, %r3;
  st.global.u32 [%d2], %r4;
  ret;
}
.visible .entry after(.param .u64 from, .param .u64 to)
{
  .reg .u64 %d<5>;
  .reg .u32 %r<3>;
  ld.param.u64 %d1, [from];
  ld.param.u64 %d2, [to];
  cvta.to.global.u64 %d3, %d1;
  cvta.to.global.u64 %d4, %d2;
  griddepcontrol.wait;
  ld.global.u32 %r1, [%d3];
  add.u32 %r2, %r1, 1;
  st.global.u32 [%d4], %r2;
  griddepcontrol.launch_dependents;
  ret;
}
'''
_hopper = c_void_p()
ok(driver.cuModuleLoadData(byref(_hopper), HOPPER), "HOPPER")
def hopper(name):
    function = c_void_p()
    ok(driver.cuModuleGetFunction(byref(function), _hopper, name))
    return function
class Attribute(ctypes.Structure):
    _fields_ = [("id", c_int), ("pad", c_int), ("value", c_uint64 * 8)]
class Config(ctypes.Structure):
    _fields_ = [("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint),
                ("stream", c_void_p), ("attributes", c_void_p), ("count", c_uint)]
def attribute(number, packed):
    each = Attribute(number)
    ctypes.memmove(each.value, packed, len(packed))
    return each
def launch_ex(function, grid, s, attributes, *values):
    array = (Attribute * len(attributes))(*attributes)
    config = Config((grid, 1, 1), (1, 1, 1), 0, s.value, ctypes.addressof(array), len(attributes))
    pointers = (c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    return driver.cuLaunchKernelEx(byref(config), function, pointers, None), array
def cluster(x, y=1, z=1): return attribute(4, struct.pack("<III", x, y, z))
"""


def test_clusters(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + LAUNCHES
        + """
s, out, function = stream(), alloc(64), hopper(b"where_am_i")
def seen(*attributes):
    result, _ = launch_ex(function, 16, s, attributes, out)
    if result == 0: ok(driver.cuStreamSynchronize(s))
    return result, read(out, 16)
same(seen(), (0, [100] * 16))
same(seen(cluster(4)), (0, [400 + i % 4 for i in range(16)]))
same(seen(cluster(8)), (0, [800 + i % 8 for i in range(16)]))
same(seen(cluster(3))[0], 912)
same(seen(cluster(16))[0], 912)
ok(driver.cuFuncSetAttribute(function, 14, 1))  # clusters that not every GPU can form
same(seen(cluster(16)), (0, [1600 + i for i in range(16)]))
# In a graph, from a capture and by the node's attribute.
ok(driver.cuStreamBeginCapture_v2(s, GLOBAL))
ok(launch_ex(function, 16, s, [cluster(2)], out)[0])
result, captured = end(s); ok(result)
graph = c_void_p(captured)
run(instantiate(graph)); same(read(out, 16), [200 + i % 2 for i in range(16)])
(node,) = nodes_of(graph)
value = (c_uint64 * 8)()
ok(driver.cuGraphKernelNodeGetAttribute(c_void_p(node), 4, value))
same(struct.unpack("<III", bytes(value)[:12]), (2, 1, 1))
ctypes.memmove(value, struct.pack("<III", 4, 1, 1), 12)
ok(driver.cuGraphKernelNodeSetAttribute(c_void_p(node), 4, value))
run(instantiate(graph)); same(read(out, 16), [400 + i % 4 for i in range(16)])
""",
    )


def test_dependent_launches(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + LAUNCHES
        + """
s, other, function = stream(), stream(), hopper(b"after")
words = [alloc(4) for _ in range(20)]
early = attribute(6, struct.pack("<i", 1))
for a, b in zip(words, words[1:]): ok(launch_ex(function, 1, s, [early], a, b)[0])
ok(driver.cuStreamSynchronize(s)); same(read(words[-1]), 19)
# Events that a launch itself records: when its blocks say so, and when all have begun.
for number, packed in ((7, lambda e: struct.pack("<Qii", e.value, 0, 0)),
                       (12, lambda e: struct.pack("<Qi", e.value, 0))):
    e = event(2)
    ok(launch_ex(function, 1, s, [attribute(number, packed(e))], words[0], words[1])[0])
    ok(driver.cuStreamWaitEvent(other, e, 0))
    ok(launch(other, words[2], 1))
    ok(driver.cuEventSynchronize(e)); ok(driver.cuStreamSynchronize(other))
# Hints change no result.
for number, packed in ((8, struct.pack("<i", -1)), (10, struct.pack("<i", 1)),
                       (9, struct.pack("<BB", 0, 1)), (14, struct.pack("<I", 50)),
                       (5, struct.pack("<i", 2)),
                       (1, struct.pack("<QQfii", words[0].value, 4, 1.0, 2, 1))):
    ok(launch_ex(function, 1, s, [attribute(number, packed)], words[0], words[1])[0], number)
ok(driver.cuStreamSynchronize(s)); same(read(words[1]), 1)
""",
    )


def test_nodes_that_kernels_update(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + LAUNCHES
        + """
s, a, b, function = stream(), alloc(4), alloc(4), hopper(b"after")
updatable = attribute(13, struct.pack("<iiQ", 1, 0, 0))
assert launch_ex(function, 1, s, [updatable], a, b)[0] != 0  # only in a capture
ok(driver.cuStreamBeginCapture_v2(s, GLOBAL))
result, array = launch_ex(function, 1, s, [updatable], a, b); ok(result)
assert array[0].value[1] != 0, "no handle for kernels"
result, captured = end(s); ok(result)
(node,) = nodes_of(c_void_p(captured))
value = (c_uint64 * 8)()
ok(driver.cuGraphKernelNodeGetAttribute(c_void_p(node), 13, value))
same((value[0] & 0xffffffff, value[1]), (1, array[0].value[1]))
assert driver.cuGraphDestroyNode(c_void_p(node)) != 0
executable = instantiate(c_void_p(captured))
ok(driver.cuGraphUpload(executable, s))
run(executable, s); same(read(b), 1)
""",
    )
