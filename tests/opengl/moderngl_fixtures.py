"""What moderngl's own tests expect of their conftest, which its source on PyPI lacks; a plugin of
the pytest that runs them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import moderngl
import pytest


def _context() -> Any:
    made: Any = moderngl
    return made.create_context(standalone=True, backend="egl", require=330)


@pytest.fixture(scope="session")
def ctx_static() -> Any:
    """One context for all."""
    return _context()


@pytest.fixture
def ctx(ctx_static: Any) -> Any:
    """The same, current and without errors and settings of a test that has failed before."""
    ctx_static.__enter__()
    ctx_static.enable_only(moderngl.NOTHING)
    ctx_static.cull_face = "back"
    ctx_static.gc_mode = None
    ctx_static.clear_errors()
    return ctx_static


@pytest.fixture
def ctx_new() -> Iterator[Any]:
    """A context of the test's own."""
    context = _context()
    yield context
    context.release()


@pytest.fixture(scope="session")
def color_prog(ctx_static: Any) -> Any:
    """Draws in one colour."""
    return ctx_static.program(
        vertex_shader="#version 330\nin vec2 in_vert; "
        "void main() { gl_Position = vec4(in_vert, 0, 1); }",
        fragment_shader="#version 330\nuniform vec4 color; out vec4 o; void main() { o = color; }",
    )


@pytest.fixture(scope="session")
def ndc_quad(ctx_static: Any) -> Any:
    """Two triangles over the whole picture."""
    return ctx_static.buffer(struct.pack("8f", -1, 1, -1, -1, 1, 1, 1, -1))
