"""How the programs begin that the tests of streams, events, capture and graphs run on a vGPU.

They are plain driver API programs, so that the same text can be held against a real driver.
`hold(stream)` keeps a stream busy until `let_go()`; nothing depends on how fast a GPU is.
"""

from __future__ import annotations

PRELUDE = r"""
import ctypes, os, struct, threading, time
from ctypes import byref, c_int, c_uint, c_uint64, c_size_t, c_void_p, c_float, c_char_p, POINTER
driver = ctypes.CDLL("libcuda.so.1")
NOT_READY, INVALID_VALUE, INVALID_HANDLE, NOT_SUPPORTED = 600, 1, 400, 801
UNSUPPORTED, INVALIDATED, MERGE, UNMATCHED, UNJOINED = range(900, 905)
ISOLATION, IMPLICIT, CAPTURED, WRONG_THREAD = range(905, 909)
ILLEGAL_STATE = 401
GLOBAL, THREAD_LOCAL, RELAXED = range(3)
NONE, ACTIVE, INVALID = range(3)
LEGACY, PER_THREAD = c_void_p(1), c_void_p(2)

def same(got, wanted, what=""):
    assert got == wanted, f"{what} got {got}, expected {wanted}"
def ok(result, what=""):
    same(result, 0, what)
def until(condition, what, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.001)

ok(driver.cuInit(0))
context = c_void_p()
ok(driver.cuDevicePrimaryCtxRetain(byref(context), 0))
ok(driver.cuCtxSetCurrent(context))

def stream(flags=1):
    handle = c_void_p()
    ok(driver.cuStreamCreate(byref(handle), flags))
    return handle
def event(flags=0):
    handle = c_void_p()
    ok(driver.cuEventCreate(byref(handle), flags))
    return handle
def alloc(size):
    address = c_uint64()
    ok(driver.cuMemAlloc_v2(byref(address), c_size_t(size)))
    ok(driver.cuMemsetD8_v2(address, 0, c_size_t(size)))
    ok(driver.cuCtxSynchronize())
    return address
def read(address, count=1):
    values = (c_uint * count)()
    ok(driver.cuMemcpyDtoH_v2(values, address, c_size_t(4 * count)), "read")
    return list(values) if count > 1 else values[0]

_gate = alloc(64)
_opener = stream()
_round = 0
def hold(s):
    # The stream waits for the word at _gate; another stream writes it in let_go().
    ok(driver.cuStreamWaitValue32_v2(s, _gate, _round + 1, 0), "hold")
def let_go():
    global _round
    _round += 1
    ok(driver.cuStreamWriteValue32_v2(_opener, _gate, _round, 0))
    ok(driver.cuStreamSynchronize(_opener))

PTX = b'''
.version 7.0
.target sm_70
.address_size 64
.visible .entry add(.param .u64 where, .param .u32 what)
{
  .reg .u64 %rd<3>;
  .reg .u32 %r<3>;
  ld.param.u64 %rd1, [where];
  ld.param.u32 %r1, [what];
  cvta.to.global.u64 %rd2, %rd1;
  atom.global.add.u32 %r2, [%rd2], %r1;
  ret;
}
'''
_module = c_void_p()
ok(driver.cuModuleLoadData(byref(_module), PTX), "cuModuleLoadData")
kernel = c_void_p()
ok(driver.cuModuleGetFunction(byref(kernel), _module, b"add"), "cuModuleGetFunction")
def parameters(where, what):
    values = (c_uint64(where.value), c_uint(what))
    return (c_void_p * 2)(*(ctypes.addressof(v) for v in values)), values
def launch(s, where, what):
    # cuLaunchKernel: one thread that adds `what` to the number at `where`.
    pointers, _keep = parameters(where, what)
    return driver.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, s, pointers, None)
def status(s):
    value = c_int(-1)
    result = driver.cuStreamIsCapturing(s, byref(value))
    return value.value if result == 0 else -result
def end(s):
    graph = c_void_p(77)
    result = driver.cuStreamEndCapture(s, byref(graph))
    return result, graph.value
def instantiate(graph):
    executable = c_void_p()
    ok(driver.cuGraphInstantiateWithFlags(byref(executable), graph, c_uint64(0)), "instantiate")
    return executable
"""
