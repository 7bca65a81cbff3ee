"""What objects of the generated path take is the vGPU's: counted, given back, refused above it."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import TRANSPORTS, Host
from tests.opengl.generated import generated

PROGRAM = """
import ctypes
from ctypes import *
from tests.opengl.egl_program import *
gl = Egl()
MIB, OUT_OF_MEMORY = 1 << 20, 0x505
cuda = CDLL("libcuda.so.1")
assert cuda.cuInit(0) == 0
context = c_void_p()
assert cuda.cuDevicePrimaryCtxRetain(byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0

def free():
    function("glFlush", None)()
    left, whole = c_size_t(), c_size_t()
    assert cuda.cuMemGetInfo_v2(byref(left), byref(whole)) == 0
    return left.value

def call(name, *values):
    kinds = [c_void_p if value is None or value >= 1 << 31 else c_int for value in values]
    function(name, None, *kinds)(*values)

def make(kind):
    name = c_uint()
    function("glGen" + kind, None, c_int, POINTER(c_uint))(1, byref(name))
    return name.value

def delete(kind, name):
    function("glDelete" + kind, None, c_int, POINTER(c_uint))(1, byref(c_uint(name)))

def takes(bytes_, name, *values):
    before = free()
    call(name, *values)
    found = error()
    assert found == 0, (name, hex(found))
    assert before - free() == bytes_, (name, values, before - free())

def refused(name, *values, by=(OUT_OF_MEMORY,)):
    before = free()
    call(name, *values)
    found = error()
    assert found in by, (name, values, hex(found))
    assert free() == before, (name, values)

whole = free()
"""

COUNTED = {
    "a buffer": """
for target in (0x8892, 0x8893, 0x88EC, 0x8A11, 0x8F36, 0x8F37, 0x8C8E):
    name = make("Buffers")
    call("glBindBuffer", target, name)
    takes(8 * MIB, "glBufferData", target, 8 * MIB, None, 0x88E4)
    takes(0, "glBufferData", target, 8 * MIB, None, 0x88E4)
    takes(-6 * MIB, "glBufferData", target, 2 * MIB, None, 0x88E4)
    takes(4096 - 2 * MIB, "glBufferData", target, 5, None, 0x88E4)
    delete("Buffers", name)
    assert free() == whole, target
""",
    "a texture of levels": """
name = make("Textures")
call("glBindTexture", 0x0DE1, name)
takes(4 * MIB, "glTexImage2D", 0x0DE1, 0, 0x8058, 1024, 1024, 0, 0x1908, 0x1401, None)
takes(MIB, "glTexImage2D", 0x0DE1, 1, 0x8058, 512, 512, 0, 0x1908, 0x1401, None)
takes(87381 * 4 // 4096 * 4096 + 4096, "glGenerateMipmap", 0x0DE1)
delete("Textures", name)
assert free() == whole
""",
    "storage of every level": """
name = make("Textures")
call("glBindTexture", 0x0DE1, name)
takes(5 * MIB, "glTexStorage2D", 0x0DE1, 2, 0x8058, 1024, 1024)
refused("glTexStorage2D", 0x0DE1, 2, 0x8058, 1024, 1024, by=(0x502,))
delete("Textures", name)
assert free() == whole
""",
    "a cube, an array, three dimensions": """
cube, many, deep = make("Textures"), make("Textures"), make("Textures")
call("glBindTexture", 0x8513, cube)
call("glBindTexture", 0x8C1A, many)
call("glBindTexture", 0x806F, deep)
takes(6 * 65536, "glTexStorage2D", 0x8513, 1, 0x8058, 128, 128)
takes(10 * (65536 + 16384), "glTexStorage3D", 0x8C1A, 2, 0x8058, 128, 128, 10)
takes(128 * 65536, "glTexImage3D", 0x806F, 0, 0x8058, 128, 128, 128, 0, 0x1908, 0x1401, None)
for name in (cube, many, deep):
    delete("Textures", name)
assert free() == whole
""",
    "renderbuffers and samples": """
name = make("Renderbuffers")
call("glBindRenderbuffer", 0x8D41, name)
takes(4 * MIB, "glRenderbufferStorage", 0x8D41, 0x8058, 1024, 1024)
takes(12 * MIB, "glRenderbufferStorageMultisample", 0x8D41, 4, 0x8058, 1024, 1024)
delete("Renderbuffers", name)
assert free() == whole
""",
    "what CUDA has registered, without its name too": """
name, resource = make("Buffers"), c_void_p()
call("glBindBuffer", 0x8892, name)
takes(8 * MIB, "glBufferData", 0x8892, 8 * MIB, None, 0x88E4)
assert cuda.cuGraphicsGLRegisterBuffer(byref(resource), name, 0) == 0
delete("Buffers", name)
assert whole - free() == 8 * MIB
assert cuda.cuGraphicsUnregisterResource(resource) == 0
assert free() == whole
""",
    "the textures without names": """
takes(4 * MIB, "glTexImage2D", 0x0DE1, 0, 0x8058, 1024, 1024, 0, 0x1908, 0x1401, None)
other = gl.create()
gl.make_current(other)
takes(4 * MIB, "glTexImage2D", 0x0DE1, 0, 0x8058, 1024, 1024, 0, 0x1908, 0x1401, None)
gl.make_current(None)
egl.eglDestroyContext(gl.display, other)
gl.make_current(gl.context)
assert free() == whole - 4 * MIB
""",
    "a context's objects, shared or not": """
sharing, alone = gl.create(gl.context), gl.create()
for context in (sharing, alone):
    gl.make_current(context)
    call("glBindBuffer", 0x8892, make("Buffers"))
    takes(8 * MIB, "glBufferData", 0x8892, 8 * MIB, None, 0x88E4)
    gl.make_current(None)
    egl.eglDestroyContext(gl.display, context)
gl.make_current(gl.context)
assert free() == whole - 8 * MIB
""",
    "a pbuffer": """
egl.eglChooseConfig.argtypes = [c_void_p, c_void_p, c_void_p, c_int, c_void_p]
config, count = c_void_p(), c_int()
wanted = (c_int * 3)(0x3033, 1, NONE)
assert egl.eglChooseConfig(gl.display, wanted, byref(config), 1, byref(count)) and count.value
egl.eglCreatePbufferSurface.argtypes = [c_void_p] * 3
small = egl.eglCreatePbufferSurface(gl.display, config, (c_int * 5)(0x3057, 256, 0x3056, 256, NONE))
assert small
assert 0 < whole - free() < 4 * MIB
large = (c_int * 5)(0x3057, 8192, 0x3056, 8192, NONE)
assert not egl.eglCreatePbufferSurface(gl.display, config, large)
assert egl.eglGetError() == 0x3003
egl.eglDestroySurface(gl.display, c_void_p(small))
assert free() == whole
""",
}

REFUSED = """
name = make("Buffers")
call("glBindBuffer", 0x8892, name)
takes(40 * MIB, "glBufferData", 0x8892, 40 * MIB, None, 0x88E4)
texture = make("Textures")
call("glBindTexture", 0x0DE1, texture)
call("glBindTexture", 0x806F, make("Textures"))
call("glBindRenderbuffer", 0x8D41, make("Renderbuffers"))
edge = (1 << 31) - 1
refused("glTexImage2D", 0x0DE1, 0, 0x8058, 4096, 4096, 0, 0x1908, 0x1401, None)
refused("glTexStorage2D", 0x0DE1, 1, 0x8058, 4096, 4096)
refused("glRenderbufferStorageMultisample", 0x8D41, 4, 0x8058, 2048, 2048)
# Of sizes without end, and of negative ones, which are the driver's to refuse.
refused("glBufferData", 0x8892, 1 << 62, None, 0x88E4)
refused("glTexImage2D", 0x0DE1, 0, 0x8814, edge, edge, 0, 0x1908, 0x1406, None)
refused("glTexImage3D", 0x806F, 0, 0x8814, edge, edge, edge, 0, 0x1908, 0x1406, None)
refused("glTexStorage3D", 0x806F, edge, 0x8814, edge, edge, edge)
refused("glRenderbufferStorageMultisample", 0x8D41, edge, 0x8814, edge, edge)
refused("glTexImage2D", 0x0DE1, 0, 0x8058, -1, 8, 0, 0x1908, 0x1401, None, by=(0x501,))
refused("glRenderbufferStorage", 0x8D41, 0x8058, -1, 8, by=(0x501,))
refused("glBufferData", 0x1234, 4096, None, 0x88E4, by=(0x500,))
refused("glTexImage2D", 0x1234, 0, 0x8058, 8, 8, 0, 0x1908, 0x1401, None, by=(0x500,))
# Nothing else is lost: what was there is as it was, and what fits is had.
takes(4 * MIB, "glTexStorage2D", 0x0DE1, 1, 0x8058, 1024, 1024)
gl.target(16, 16)
clear(0, 1, 0, 1)
assert read(16, 16)[:4] == bytes([0, 255, 0, 255])
# Of one account with CUDA's.
address = c_uint64()
assert cuda.cuMemAlloc_v2(byref(address), c_size_t(40 * MIB)) == 2
delete("Buffers", name)
function("glFinish", None)()
assert cuda.cuMemAlloc_v2(byref(address), c_size_t(40 * MIB)) == 0
call("glBindBuffer", 0x8892, make("Buffers"))
refused("glBufferData", 0x8892, 40 * MIB, None, 0x88E4)
"""


def run(host: Host, transport: str, text: str) -> None:
    """A program whose vGPU has 80 MiB."""
    way = generated(host, transport)
    way.run(sys.executable, "-c", PROGRAM + text, variables={"GPUPOOL_MEMORY_MIB": "80"})


@pytest.mark.parametrize("what", COUNTED)
def test_an_object_is_counted_and_given_back(host: Host, what: str) -> None:
    run(host, "shm", COUNTED[what])


@pytest.mark.parametrize("over", TRANSPORTS)
def test_above_the_quota_opengl_is_out_of_memory(host: Host, over: str) -> None:
    run(host, over, REFUSED)
