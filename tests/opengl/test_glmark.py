"""glmark2 with its own check of what each scene looks like."""

from __future__ import annotations

import re

import pytest

from tests.conftest import TRANSPORTS, Host
from tests.opengl import ways
from tests.opengl.generated import generated, with_windows
from tests.opengl.ways import Way

PROGRAMS = {"glmark2": "glmark2-x11", "glmark2-es2": "glmark2-es2-x11"}
# A part of them where each transport has its turn with both programs; -m slow runs all of them.
SOME = (
    "build:use-vbo=true",
    "build:use-vbo=false",
    "texture:texture-filter=mipmap",
    "shading:shading=phong",
    "bump:bump-render=height",
    "effect2d:kernel=0,1,0;1,-4,1;0,1,0;",
    "buffer:update-fraction=0.5:update-method=map:interleave=true",
    "loop:fragment-loop=false:fragment-steps=5:vertex-steps=5",
)
_LINE = re.compile(r"^\[(?P<scene>.*?)\] (?P<options>.*): Validation: (?P<verdict>\w+)$")


def verdicts(text: str) -> dict[str, str]:
    """Of each scene."""
    found = (_LINE.match(line) for line in text.splitlines())
    return {f"{each['scene']} {each['options']}": each["verdict"] for each in found if each}


def check(
    native: Way,
    opengl: Way,
    program: str,
    display: str,
    *scenes: str,
    off_screen: bool = True,
) -> str:
    """Every scene says of our way what it says natively: Success, or Unknown without a check.

    Returns what the program printed our way.
    """
    path = ways.need_program(program, PROGRAMS[program])
    command = [path, *(["--off-screen"] if off_screen else []), "--validate"]
    for scene in scenes:
        command += ["-b", scene]
    variables = {"DISPLAY": display}
    expected = verdicts(native.run(*command, variables=variables).stdout)
    done = opengl.run(*command, variables=variables, timeout_s=250)
    found = verdicts(done.stdout)
    assert len(expected) >= max(len(scenes), 1)
    assert found == expected, done.stdout
    return done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_some_scenes(native: Way, opengl: Way, program: str, display: str) -> None:
    assert "virgl" in check(native, opengl, program, display, *SOME)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_all_scenes(native: Way, opengl: Way, program: str, display: str) -> None:
    assert "virgl" in check(native, opengl, program, display)


@pytest.fixture(params=TRANSPORTS)
def windows(request: pytest.FixtureRequest, host: Host) -> Way:
    """The generated way, with X11's windows."""
    return with_windows(generated(host, request.param))


@pytest.mark.parametrize("off_screen", [True, False], ids=["off-screen", "window"])
def test_some_scenes_of_the_generated_path(
    native: Way, windows: Way, display: str, off_screen: bool
) -> None:
    """OpenGL ES only: glmark2 itself asks for a compatibility profile."""
    said = check(native, windows, "glmark2-es2", display, *SOME, off_screen=off_screen)
    assert "virgl" not in said


@pytest.mark.slow
def test_all_scenes_of_the_generated_path(native: Way, windows: Way, display: str) -> None:
    check(native, windows, "glmark2-es2", display)
