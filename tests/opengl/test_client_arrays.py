"""OpenGL ES draws from the program's own memory: the generated path as natively."""

from __future__ import annotations

import pytest

from tests.conftest import TRANSPORTS, Host
from tests.opengl.generated import answer, generated
from tests.opengl.ways import Way

PROGRAM = """
import json, struct
from tests.opengl.egl_program import *
gl = Egl(OPENGL_ES_API, 3, 0)
gl.target(64, 64)
GL = {}
def call(name, *arguments, returns=None, types=()):
    found = GL.setdefault(name, function(name, returns, *types))
    return found(*arguments)
U, I, P = c_uint, c_int, c_void_p
FLOAT, UBYTE, USHORT, UINT, TRIANGLES, STRIP = 0x1406, 0x1401, 0x1403, 0x1405, 4, 5
ARRAY, ELEMENTS = 0x8892, 0x8893
def shader(kind, text):
    made = call("glCreateShader", kind, returns=U, types=(U,))
    line = (c_char_p * 1)(text.encode())
    call("glShaderSource", made, 1, line, None, types=(U, I, P, P))
    call("glCompileShader", made, types=(U,))
    return made
program = call("glCreateProgram", returns=U)
for kind, text in ((0x8B31, '''#version 300 es
layout(location=0) in vec2 place; layout(location=1) in vec4 colour;
layout(location=2) in vec2 shift;
out vec4 painted;
void main() { gl_Position = vec4(place + shift, 0.0, 1.0); painted = colour;
              if (gl_VertexID == 4) painted.b = 1.0; }'''),
    (0x8B30, '''#version 300 es
precision mediump float; in vec4 painted; out vec4 seen; void main() { seen = painted; }''')):
    call("glAttachShader", program, shader(kind, text), types=(U, U))
call("glLinkProgram", program, types=(U,)); call("glUseProgram", program, types=(U,))
def point(index, size, kind, normalized, stride, where):
    call("glVertexAttribPointer", index, size, kind, normalized, stride, where,
         types=(U, I, U, U, I, P))
def enable(*indices):
    for index in range(3):
        name = "glEnableVertexAttribArray" if index in indices else "glDisableVertexAttribArray"
        call(name, index, types=(U,))
def bind(target, name): call("glBindBuffer", target, name, types=(U, U))
def buffer(target, data):
    name = U(); call("glGenBuffers", 1, byref(name), types=(I, P)); bind(target, name.value)
    call("glBufferData", target, len(data), data, 0x88E4, types=(U, ctypes.c_ssize_t, P, U))
    return name.value
def arrays(mode, first, count): call("glDrawArrays", mode, first, count, types=(U, I, I))
def elements(mode, count, kind, where):
    call("glDrawElements", mode, count, kind, where, types=(U, I, U, P))
pictures = {}
def keep(name): pictures[name] = [digest(read(64, 64)), error()]; clear(0, 0, 0, 1)
clear(0, 0, 0, 1)
corners = [(-.9, -.9), (.9, -.9), (-.9, .9), (.8, .9), (.9, -.8), (-.7, .9)]
places = struct.pack("12f", *[v for corner in corners for v in corner])
colours = bytes(v for n in range(6) for v in (40 * n, 255 - 40 * n, 99, 255))
mixed = b"".join(places[8 * n:8 * n + 8] + colours[4 * n:4 * n + 4] for n in range(6))
kept = [ctypes.create_string_buffer(each, len(each)) for each in (places, colours, mixed)]
at = [ctypes.addressof(each) for each in kept]
enable(0, 1)
point(0, 2, FLOAT, 0, 0, at[0]); point(1, 4, UBYTE, 1, 0, at[1])
arrays(TRIANGLES, 0, 6); keep("arrays")
arrays(TRIANGLES, 3, 3); keep("from the fourth")
point(0, 2, FLOAT, 0, 12, at[2]); point(1, 4, UBYTE, 1, 12, at[2] + 8)
arrays(TRIANGLES, 0, 6); keep("one in the other")
few = (ctypes.c_uint16 * 6)(5, 4, 3, 2, 1, 4)
elements(TRIANGLES, 6, USHORT, few); keep("elements")
few[5] = 0
elements(TRIANGLES, 6, USHORT, few); keep("elements, changed")
in_buffer = buffer(ELEMENTS, bytes((1, 3, 4, 0, 1, 2)))
elements(TRIANGLES, 3, UBYTE, 3); elements(TRIANGLES, 3, UBYTE, None); keep("indices in a buffer")
bind(ELEMENTS, 0)
vertices = buffer(ARRAY, places)
point(0, 2, FLOAT, 0, 0, None); bind(ARRAY, 0)
arrays(TRIANGLES, 0, 6); elements(TRIANGLES, 3, USHORT, few); keep("places in a buffer")
bind(ARRAY, vertices); point(1, 4, UBYTE, 1, 4, None); bind(ARRAY, 0)
elements(TRIANGLES, 6, USHORT, few); keep("only indices in memory")
point(0, 2, FLOAT, 0, 0, at[0]); point(1, 4, UBYTE, 1, 0, at[1])
shifts = (c_float * 4)(-.5, 0, .5, .25)
enable(0, 1, 2); point(2, 2, FLOAT, 0, 0, ctypes.addressof(shifts))
call("glVertexAttribDivisor", 2, 1, types=(U, U))
call("glDrawArraysInstanced", TRIANGLES, 0, 3, 2, types=(U, I, I, I)); keep("instances")
call("glVertexAttribDivisor", 2, 0, types=(U, U)); enable(0, 1)
call("glEnable", 0x8D69, types=(U,))
strips = (ctypes.c_uint16 * 7)(0, 1, 2, 0xFFFF, 3, 4, 5)
elements(STRIP, 7, USHORT, strips); keep("strips")
call("glDisable", 0x8D69, types=(U,))
array = U(); call("glGenVertexArrays", 1, byref(array), types=(I, P))
call("glBindVertexArray", array.value, types=(U,))
bind(ARRAY, vertices); enable(0); point(0, 2, FLOAT, 0, 0, None); bind(ARRAY, 0)
arrays(TRIANGLES, 0, 6); keep("a vertex array")
call("glDeleteVertexArrays", 1, byref(array), types=(I, P))
arrays(TRIANGLES, 0, 6); keep("vertex array 0 again")
for wrong in ((0, 5, FLOAT, 0, 0), (0, 2, FLOAT, 0, -1), (0, 2, 0x1234, 0, 0),
              (99, 2, FLOAT, 0, 0)):
    point(*wrong, at[0]); pictures[str(wrong)] = error()
arrays(TRIANGLES, 0, 6); keep("as before")
print(json.dumps(pictures))
"""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_pictures_are_the_same(native: Way, host: Host, transport: str) -> None:
    there = answer(generated(host, transport), PROGRAM)
    here = answer(native, PROGRAM)
    # Wrong calls change nothing. Mesa itself draws something else after them, from run to run.
    assert there.pop("as before") == there["vertex array 0 again"]
    del here["as before"]
    assert there == here
    drawn = [said[0] for said in here.values() if isinstance(said, list)]
    assert len(set(drawn)) > len(drawn) // 2  # some are to be the same pictures, others not
