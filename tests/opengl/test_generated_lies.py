"""A client that sends the worker's OpenGL messages of its own making ends its own session, or gets
an error; the worker never dies of it.
"""

from __future__ import annotations

import sys

import pytest

from tests.conftest import ROOT, Host
from tests.opengl.generated import generated

NAMES = str(ROOT / "wire" / "api" / "opengl" / "core-4.6.txt")
PROGRAM = """
import ctypes, struct, sys
from ctypes import *
from tests.opengl.egl_program import *
gl = Egl()
gl.target(16, 16)
clear(1, 0, 0, 1)
assert read(16, 16)[:4] == bytes([255, 0, 0, 255])
class Message(Structure):
    _fields_ = [("function", c_uint16), ("flags", c_uint16), ("bytes", c_uint32),
                ("payload", c_char_p), ("offset", c_uint64), ("size", c_uint64),
                ("copy_to", c_void_p), ("copy_bytes", c_uint64)]
class Table(Structure):
    _fields_ = [("version", c_uint32), ("bytes", c_uint32), ("connect", c_void_p),
                ("send", c_void_p),
                ("wait", CFUNCTYPE(c_int, POINTER(Message), POINTER(c_uint64), c_char_p, c_uint32,
                                   POINTER(c_uint32)))]
find = CDLL("libcuda.so.1").gpupool_private_table
find.restype = POINTER(Table)
table = find(3).contents
def wait(payload, function=60):
    message = Message(function, 0, len(payload), payload, 0, 0, None, 0)
    size = c_uint32()
    room = create_string_buffer(4096)
    result = table.wait(byref(message), byref(c_uint64()), room, 4000, byref(size))
    return result, room.raw[:size.value]
def command(number, arguments, length=None):
    body = arguments + bytes(-len(arguments) % 8)
    return struct.pack("<HHI", number, 0, len(body) + 8 if length is None else length) + body
def batch(*commands, context=1):
    return wait(struct.pack("<II", context, 0) + b"".join(commands))
names = {line: number for number, line in enumerate(
    (line for line in open(sys.argv[1]).read().splitlines() if not line.startswith("#")), 1)}
"""

LIES = {
    "a function without a number": "batch(command(60000, b''))",
    "a function that nobody forwards": "batch(command(names['glProgramBinary'], bytes(64)))",
    "a command that is too short": "batch(command(names['glClear'], b''))",
    "bytes left over": "batch(command(names['glClear'], bytes(16)))",
    "a length beyond the batch": "batch(command(names['glClear'], bytes(8), 4096))",
    "a length that is none": "batch(command(names['glClear'], bytes(8), 4))",
    "an array of another length": (
        "batch(command(names['glUniform1fv'], struct.pack('<iiQ', 0, 1000, 1) + bytes(8)))"
    ),
    "an array that is not there": (
        "batch(command(names['glUniform1fv'], struct.pack('<iiQ', 0, 1000, 1000)))"
    ),
    "an answer that nobody waits for": (
        "batch(command(names['glGetError'], bytes(8)), command(names['glClear'], bytes(8)))"
    ),
    "more room than there is": (
        "batch(command(names['glGenBuffers'], struct.pack('<iiQ', 100000, 0, 100000)))"
    ),
    "a context under an index that is in use": (
        "wait(struct.pack('<I4x7I', 2, 1, 0, 0x30a2, 3, 3, 1, 0), 61)"
    ),
    "a compatibility profile": "wait(struct.pack('<I4x7I', 2, 9, 0, 0x30a2, 3, 3, 2, 0), 61)",
    "a surface that cannot be": "wait(struct.pack('<I4x7I', 4, 9, 1 << 30, 4, 8, 24, 8, 0), 61)",
    "managing something unknown": "wait(struct.pack('<I4x', 99), 61)",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_ends_the_session(host: Host, lie: str) -> None:
    before = host.log.count("the client broke the protocol")
    text = PROGRAM + f"result, data = {LIES[lie]}\nassert result == 46, (result, data)\n"
    generated(host, "shm").run(sys.executable, "-c", text, NAMES)
    host.wait_until(
        lambda: host.log.count("the client broke the protocol") > before, "the worker's line"
    )


def test_an_offset_into_no_buffer_is_refused(host: Host) -> None:
    """Drawing, pointing and uploading with an address where a buffer's offset should be."""
    generated(host, "shm").run(
        sys.executable,
        "-c",
        PROGRAM
        + """
at = 0x7fff00000000
vao = c_uint()
function("glGenVertexArrays", None, c_int, POINTER(c_uint))(1, byref(vao))
function("glBindVertexArray", None, c_uint)(vao)
assert error() == 0
function("glVertexAttribPointer", None, c_uint, c_int, c_uint, c_ubyte, c_int, c_void_p)(
    0, 4, 0x1406, 0, 16, at)
assert error() == 0x502
function("glDrawElements", None, c_uint, c_int, c_uint, c_void_p)(4, 3, 0x1405, at)
assert error() == 0x502
function("glDrawArraysIndirect", None, c_uint, c_void_p)(4, at)
assert error() == 0x502
# An offset is what the client says that it is: without a buffer bound the worker refuses.
head = struct.pack("<HHI", names["glTexImage2D"], 2, 8 + 40)
body = struct.pack("<IiiiiiII", 0x0DE1, 0, 0x8058, 4, 4, 0, 0x1908, 0x1401) + struct.pack("<Q", at)
assert batch(head + body)[0] == 0
assert error() == 0x502
assert read(16, 16)[:4] == bytes([255, 0, 0, 255])
""",
        NAMES,
    )
