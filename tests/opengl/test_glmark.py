"""glmark2 with its own check of what each scene looks like."""

from __future__ import annotations

import re

import pytest

from tests.opengl import ways
from tests.opengl.ways import Way

PROGRAMS = {"glmark2": "glmark2-x11", "glmark2-es2": "glmark2-es2-x11"}
# A part of them where each transport has its turn with both programs; -m slow runs all of them.
SOME = (
    "build:use-vbo=true",
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


def check(native: Way, opengl: Way, program: str, display: str, *scenes: str) -> None:
    """Every scene says of our way what it says natively: Success, or Unknown without a check."""
    path = ways.need_program(program, PROGRAMS[program])
    command = [path, "--off-screen", "--validate", "--size", "200x150"]
    for scene in scenes:
        command += ["-b", scene]
    variables = {"DISPLAY": display}
    expected = verdicts(native.run(*command, variables=variables).stdout)
    done = opengl.run(*command, variables=variables, timeout_s=250)
    found = verdicts(done.stdout)
    assert "virgl" in done.stdout
    assert len(expected) >= max(len(scenes), 1)
    assert found == expected, done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_some_scenes(native: Way, opengl: Way, program: str, display: str) -> None:
    check(native, opengl, program, display, *SOME)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_all_scenes(native: Way, opengl: Way, program: str, display: str) -> None:
    check(native, opengl, program, display)
