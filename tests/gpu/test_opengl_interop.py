"""CUDA and OpenGL on the same buffers and images of an NVIDIA GPU: forwarded as natively.

By hand: `python -m tests.opengl.interop_program buffer draw image surface devices errors`.
"""

from __future__ import annotations

import json

import pytest

from tests.conftest import TRANSPORTS, Host
from tests.opengl.generated import generated
from tests.opengl.ways import Way

pytestmark = pytest.mark.gpu

PROGRAM = ("-m", "tests.opengl.interop_program")
NATIVE = Way("native", {})


def said(way: Way, python: str, part: str) -> object:
    """What one part of the program says."""
    done = way.run(python, *PROGRAM, part)
    found: object = json.loads(done.stdout.splitlines()[-1])[part]
    return found


@pytest.mark.parametrize("part", ["buffer", "draw", "image", "surface", "devices", "errors"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_same_as_natively(
    nvidia_host: Host, framework_python: str, transport: str, part: str
) -> None:
    way = generated(nvidia_host, transport)
    assert said(way, framework_python, part) == said(NATIVE, framework_python, part)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_resource_ends_with_the_last_context_of_its_object(
    nvidia_host: Host, framework_python: str, transport: str
) -> None:
    """Natively such a handle is followed as a pointer: only here it is known to be none."""
    way = generated(nvidia_host, transport)
    assert said(way, framework_python, "contexts") == [True, 400, True]
