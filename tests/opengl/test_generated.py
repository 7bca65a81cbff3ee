"""The generated path of OpenGL: a headless program's context, and what it draws, against native."""

from __future__ import annotations

import pytest

from tests.conftest import Host
from tests.opengl.generated import need_opengl, run_generated, run_native

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


@pytest.fixture(autouse=True)
def opengl() -> None:
    """All of these need the machine's own OpenGL."""
    need_opengl()


def test_clearing_and_reading_back_is_the_same(host: Host, transport: str) -> None:
    """The small image comes in the reply, the large one through the window."""
    there = run_generated(host, transport, CLEAR)
    assert there == run_native(CLEAR)
    assert there[2] == 0
    assert there[3] == "4080bfff"
