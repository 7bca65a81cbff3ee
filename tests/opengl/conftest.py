"""An X server without a screen, and the ways to OpenGL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpupool.bench.x_server import x_server
from tests.conftest import TRANSPORTS, Host
from tests.opengl import ways
from tests.opengl.ways import Way


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """DISPLAY of an Xvfb of the tests' own."""
    ways.need_program("Xvfb", "xvfb")
    with x_server() as number:
        yield number


@pytest.fixture(scope="session")
def native() -> Way:
    """This machine's own OpenGL."""
    ways.need_egl()
    return ways.native()


@pytest.fixture(scope="session", params=TRANSPORTS)
def opengl(request: pytest.FixtureRequest, host: Host) -> Way:
    """gpupool's, over each transport in turn."""
    return ways.gpupool(host, request.param)
