"""The generated path of OpenGL: what headless programs draw, against native."""

from __future__ import annotations

import json
import sys
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
