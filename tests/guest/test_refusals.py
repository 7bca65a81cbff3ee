"""What is refused, and how: objects of other APIs, the debugger's and the profiler's calls."""

from __future__ import annotations

import re
from pathlib import Path

import nvidia

from tests.conftest import Host

PRELUDE = """
import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from tests.guest.cuda import Driver
driver = Driver()
lib = driver.lib
INVALID_VALUE, INVALID_DEVICE, INVALID_CONTEXT = 1, 101, 201
INVALID_HANDLE, NOT_SUPPORTED = 400, 801
def same(got, wanted):
    assert got == wanted, f"got {got!r}, wanted {wanted!r}"
"""


def test_every_error_has_a_name_and_a_text(host: Host, transport: str) -> None:
    """The names are those of cuda.h."""
    include = [Path(each) / "cu13" / "include" / "cuda.h" for each in nvidia.__path__]
    text = next(each for each in include if each.exists()).read_text()
    body = re.search(r"typedef enum cudaError_enum \{(.*?)\} CUresult;", text, re.S)
    assert body is not None
    errors = re.findall(r"^\s+(CUDA_\w+)\s*=\s*(\d+)", body[1], re.M)
    assert len(errors) > 90
    host.run_python(
        transport,
        PRELUDE
        + f"""
for name, number in {errors!r}:
    text = c_char_p()
    same(lib.cuGetErrorName(int(number), byref(text)), 0)
    same(text.value.decode(), name)
    same(lib.cuGetErrorString(int(number), byref(text)), 0)
    assert text.value
    text = c_char_p(b"x")
same(lib.cuGetErrorName(12345, byref(text)), INVALID_VALUE)
same(text.value, None)
same(lib.cuGetErrorString(1, None), INVALID_VALUE)
""",
    )


def test_external_memory_and_semaphores(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
class Memory(ctypes.Structure):
    _fields_ = [("type", c_int), ("handle", c_void_p * 2), ("size", c_uint64), ("flags", c_uint),
                ("reserved", c_uint * 16)]
class Semaphore(ctypes.Structure):
    _fields_ = [("type", c_int), ("handle", c_void_p * 2), ("flags", c_uint),
                ("reserved", c_uint * 16)]
out = c_void_p()
def memory(type=1, size=4096, flags=0):
    description = Memory(type, (c_void_p * 2)(0), size, flags)
    return lib.cuImportExternalMemory(byref(out), byref(description))
def semaphore(type=1, flags=0):
    description = Semaphore(type, (c_void_p * 2)(0), flags)
    return lib.cuImportExternalSemaphore(byref(out), byref(description))
same(memory(), NOT_SUPPORTED)
same([memory(0), memory(99), memory(size=0), memory(flags=2)], [INVALID_VALUE] * 4)
same(lib.cuImportExternalMemory(None, None), INVALID_VALUE)
same(semaphore(), NOT_SUPPORTED)
same([semaphore(0), semaphore(99), semaphore(flags=1)], [INVALID_VALUE] * 3)
some = (c_void_p * 1)(8)
room = ctypes.create_string_buffer(512)
for call in (lib.cuSignalExternalSemaphoresAsync, lib.cuWaitExternalSemaphoresAsync):
    same(call(some, room, 1, None), INVALID_HANDLE)
    same(call(some, room, 0, None), INVALID_VALUE)
    same(call(None, room, 1, None), INVALID_VALUE)
same(lib.cuDestroyExternalMemory(some[0]), INVALID_HANDLE)
same(lib.cuDestroyExternalSemaphore(some[0]), INVALID_HANDLE)
same(lib.cuExternalMemoryGetMappedBuffer(byref(out), c_void_p(8), room), INVALID_HANDLE)
same(lib.cuExternalMemoryGetMappedBuffer(None, c_void_p(8), room), INVALID_VALUE)
# What a program asks before it tries: timeline semaphores, host memory handles.
value = c_int(9)
same(lib.cuDeviceGetAttribute(byref(value), 114, 0), 0)
same(value.value, 0)
""",
    )


def test_graphics_profiler_debugger(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
some = (c_void_p * 1)(8)
same(lib.cuGraphicsMapResources(1, some, None), INVALID_HANDLE)
same(lib.cuGraphicsUnmapResources(0, some, None), INVALID_VALUE)
same(lib.cuGraphicsUnregisterResource(c_void_p(8)), INVALID_HANDLE)
same(lib.cuGraphicsGLRegisterBuffer(byref(c_void_p()), 1, 0), NOT_SUPPORTED)
same(lib.cuGLGetDevices_v2(byref(c_uint()), some, 1, 1), NOT_SUPPORTED)
same([lib.cuProfilerStart(), lib.cuProfilerStop()], [0, 0])
same(lib.cuCoredumpSetAttribute(1, byref(c_int(1)), byref(c_size_t(4))), NOT_SUPPORTED)
same(lib.cuCheckpointProcessGetState(1, byref(c_int())), NOT_SUPPORTED)
same(lib.cuCtxSetCurrent(None), 0)
same([lib.cuProfilerStart(), lib.cuProfilerStop()], [INVALID_CONTEXT] * 2)
""",
    )


def test_notifications_are_taken_and_never_come(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
@ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_void_p)
def callback(*arguments): raise SystemExit(9)
one, two = c_void_p(), c_void_p()
register = lib.cuDeviceRegisterAsyncNotification
unregister = lib.cuDeviceUnregisterAsyncNotification
same(register(0, callback, None, byref(one)), 0)
same(register(0, callback, None, byref(two)), 0)
assert one.value != two.value
same(register(99, callback, None, byref(one)), INVALID_DEVICE)
same(register(0, None, None, byref(one)), INVALID_VALUE)
same(register(0, callback, None, None), INVALID_VALUE)
same(unregister(0, one), 0)
same(unregister(0, one), INVALID_VALUE)
same(unregister(99, two), INVALID_DEVICE)
same(unregister(0, two), 0)
""",
    )
