"""An X server without a screen, and the ways to OpenGL."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import TRANSPORTS, Host
from tests.opengl import ways
from tests.opengl.ways import Way


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """DISPLAY of an Xvfb of the tests' own."""
    program = ways.need_program("Xvfb", "xvfb")
    told, tells = os.pipe()
    server = subprocess.Popen(
        [program, "-displayfd", str(tells), "-screen", "0", "1024x768x24", "-nolisten", "tcp"],
        pass_fds=(tells,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(tells)
    try:
        with os.fdopen(told) as answer:
            number = answer.readline().strip()  # empty when it has ended
        assert number, f"Xvfb ended with {server.wait(20)}"
        yield f":{number}"
    finally:
        server.terminate()
        server.wait(timeout=20)


@pytest.fixture(scope="session")
def native() -> Way:
    """This machine's own OpenGL."""
    ways.need_egl()
    return ways.native()


@pytest.fixture(scope="session", params=TRANSPORTS)
def opengl(request: pytest.FixtureRequest, host: Host) -> Way:
    """gpupool's, over each transport in turn."""
    return ways.gpupool(host, request.param)
