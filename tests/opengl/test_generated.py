"""The generated path of OpenGL: what headless programs draw, against native."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import TRANSPORTS, Host
from tests.opengl.generated import answer, generated
from tests.opengl.test_pixels import compare, drawn
from tests.opengl.ways import Way, need_egl

CLEAR = """
import json
from tests.opengl.egl_program import *
gl = Egl()
gl.target(16, 16)
clear(0.25, 0.5, 0.75, 1.0)
small = read(16, 16)
gl.target(512, 300)
clear(0.1, 0.2, 0.3, 0.4)
print(json.dumps([digest(small), digest(read(512, 300)), error(), small[:4].hex()]))
"""


@pytest.fixture(params=TRANSPORTS)
def way(request: pytest.FixtureRequest, host: Host) -> Way:
    """Over each transport in turn."""
    return generated(host, request.param)


def test_clearing_and_reading_back_is_the_same(native: Way, way: Way) -> None:
    """The small image comes in the reply, the large one through the window."""
    there = answer(way, CLEAR)
    assert there == answer(native, CLEAR)
    assert there[2] == 0
    assert there[3] == "4080bfff"


def test_scenes_of_moderngl_are_the_same(native: Way, way: Way, tmp_path: Path) -> None:
    says, pictures = drawn(way, "moderngl", tmp_path)
    compare(drawn(native, "moderngl", tmp_path)[1], pictures)
    assert "llvmpipe" in str(says)


def test_gpupool_run_chooses_it(native: Way, host: Host) -> None:
    """EGL without a display is gpupool's; the session is the one that CUDA would have."""
    need_egl()
    command = (sys.executable, "-m", "gpupool.cli", "run", "--opengl", "direct", "--")
    text = CLEAR
    text += "vendor = egl.eglQueryString(gl.display, 0x3053).decode()\nprint(json.dumps(vendor))\n"
    done = host.run("shm", *command, sys.executable, "-c", text)
    drawn_there, vendor = (json.loads(line) for line in done.stdout.splitlines())
    assert drawn_there == answer(native, CLEAR)
    assert "gpupool" in vendor.lower()


LARGE = """
import json
from ctypes import *
from tests.opengl.egl_program import *
gl = Egl()
edge = 1100
gl.target(edge, edge)
call = lambda name, *values: function(name, None, *[c_int] * len(values))(*values)
get = function("glReadPixels", None, c_int, c_int, c_int, c_int, c_uint, c_uint, c_void_p)
line = bytes(i * i >> 7 & 255 for i in range(edge))
rows = (c_uint8 * (edge * edge * 4)).from_buffer_copy(line * edge * 4)
function("glTexSubImage2D", None, c_uint, *[c_int] * 5, c_uint, c_uint, c_void_p)(
    0x0DE1, 0, 0, 0, edge, edge, RGBA, UNSIGNED_BYTE, rows)
said = []
for _ in range(20):
    pixels = create_string_buffer(edge * edge * 4 + 64)
    pixels[edge * edge * 4 :] = b"z" * 64
    get(0, 0, edge, edge, RGBA, UNSIGNED_BYTE, pixels)
    assert pixels.raw[: edge * edge * 4] == bytes(rows)
    assert pixels.raw[edge * edge * 4 :] == b"z" * 64
# Where the driver refuses nothing is written.
pixels = create_string_buffer(b"z" * edge * edge * 4, edge * edge * 4)
get(0, 0, edge, edge, 0x84F9, 0x84FA, pixels)  # there is no depth to read
assert error() == 0x0502
assert pixels.raw == b"z" * edge * edge * 4
# Rows apart, and a picture that begins later.
call("glPixelStorei", 0x0D02, edge + 10)
call("glPixelStorei", 0x0D04, 3)
apart = create_string_buffer((edge + 10) * edge * 4)
get(0, 0, edge, edge, RGBA, UNSIGNED_BYTE, apart)
assert apart.raw[12 : 12 + edge * 4] == bytes(rows)[: edge * 4]
assert apart.raw[12 + edge * 4 : 12 + (edge + 10) * 4] == bytes(40)
print(json.dumps([digest(apart.raw), error()]))
"""


def test_large_pictures_are_copied_by_several_threads(native: Way, way: Way) -> None:
    """Helpers that are woken before the answer copy neither too early nor too much."""
    several = replace(way, variables={**way.variables, "GPUPOOL_COPY_THREADS": "4"})
    assert answer(several, LARGE) == answer(way, LARGE) == answer(native, LARGE)
