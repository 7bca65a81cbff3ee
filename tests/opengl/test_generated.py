"""The generated path of OpenGL: what headless programs draw, against native."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TRANSPORTS, Host
from tests.opengl.generated import answer, generated
from tests.opengl.test_pixels import compare, drawn
from tests.opengl.ways import Way

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
