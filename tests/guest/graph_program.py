"""What programs that build graphs node by node begin with, after the PRELUDE of stream_program."""

from __future__ import annotations

NODES = """
class KernelParams(ctypes.Structure):
    _fields_ = [("func", c_void_p), ("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint),
                ("params", c_void_p), ("extra", c_void_p), ("kern", c_void_p), ("ctx", c_void_p)]
class MemsetParams(ctypes.Structure):
    _fields_ = [("dst", c_uint64), ("pitch", c_size_t), ("value", c_uint), ("size", c_uint),
                ("width", c_size_t), ("height", c_size_t)]
class Side(ctypes.Structure):
    _fields_ = [("x", c_size_t), ("y", c_size_t), ("z", c_size_t), ("lod", c_size_t),
                ("type", c_int), ("host", c_void_p), ("device", c_uint64), ("array", c_void_p),
                ("reserved", c_void_p), ("pitch", c_size_t), ("height", c_size_t)]
class Copy(ctypes.Structure):
    _fields_ = [("src", Side), ("dst", Side),
                ("width", c_size_t), ("height", c_size_t), ("depth", c_size_t)]
HOST, DEVICE = 1, 2
def new_graph():
    graph = c_void_p()
    ok(driver.cuGraphCreate(byref(graph), 0))
    return graph
def handles(nodes):
    return (c_void_p * max(len(nodes), 1))(*nodes), c_size_t(len(nodes))
def kernel_params(where, what):
    pointers, values = parameters(where, what)
    one = (1, 1, 1)
    params = KernelParams(kernel.value, one, one, 0, ctypes.addressof(pointers), None, None, None)
    params.keep = (pointers, values)
    return params
def add_kernel(graph, after, where, what):
    node = c_void_p()
    params = kernel_params(where, what)
    ok(driver.cuGraphAddKernelNode_v2(byref(node), graph, *handles(after), byref(params)))
    return node
def add_memset(graph, after, where, value, words=1):
    node = c_void_p()
    params = MemsetParams(where.value, 0, value, 4, words, 1)
    ok(driver.cuGraphAddMemsetNode(byref(node), graph, *handles(after), byref(params), context))
    return node
def copy_params(source, target, size):
    copy = Copy()
    for side, (kind, address) in ((copy.src, source), (copy.dst, target)):
        side.type = kind
        side.pitch, side.height = size, 1
        if kind == HOST: side.host = address
        else: side.device = address
    copy.width, copy.height, copy.depth = size, 1, 1
    return copy
def add_copy(graph, after, source, target, size):
    node = c_void_p()
    params = copy_params(source, target, size)
    ok(driver.cuGraphAddMemcpyNode(byref(node), graph, *handles(after), byref(params), context))
    return node
def run(executable, s=None):
    s = s or _opener
    ok(driver.cuGraphLaunch(executable, s), "launch")
    ok(driver.cuStreamSynchronize(s), "synchronise")
class Any(ctypes.Structure):
    _fields_ = [("type", c_int), ("reserved", c_int * 3),
                ("body", ctypes.c_ubyte * 232), ("tail", c_uint64)]
def any_of(kind, body=b""):
    params = Any(kind)
    ctypes.memmove(params.body, bytes(body), len(bytes(body)))
    return params
def add_any(graph, after, params):
    node = c_void_p()
    ok(driver.cuGraphAddNode(byref(node), graph, *handles(after), byref(params)), "cuGraphAddNode")
    return node
def nodes_of(graph):
    count = c_size_t(0)
    ok(driver.cuGraphGetNodes(graph, None, byref(count)))
    out = (c_void_p * max(count.value, 1))()
    ok(driver.cuGraphGetNodes(graph, out, byref(count)))
    return list(out)[:count.value]
def kind(node):
    value = c_int(-1)
    ok(driver.cuGraphNodeGetType(c_void_p(node), byref(value)))
    return value.value
"""
