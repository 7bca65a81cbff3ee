"""Test suites of others say of OpenGL through gpupool what they say of the host's own, but for the
differences that are listed here with their reason. Where native fails, so may we.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.opengl import suites
from tests.opengl.ways import Way

# Names of tests, and why they differ. All of them but imageStore-array do so with
# virgl_test_server, too, and with Mesa 26.1.6 and virglrenderer 1.3.0.
_DEPTH = "a depth texture is read back with 16 bits"
KNOWN_MODERNGL = {
    "test_compute_shader::test_texture_cube_image": "GLSL 4.50; virgl has 4.30",
    "test_cull_face::test_cull_face": _DEPTH,
    "test_texture::test_depth_texture_write": _DEPTH,
}
KNOWN_PIGLIT = {
    "gl45-imageAtomicExchange-float": "OpenGL 4.5; virgl has 4.3",
    "gs-input-array-float-index-rd": "one of the values that a geometry shader indexes is wrong",
    "primitive-id-no-gs-quad-strip": "quads become triangles, and gl_PrimitiveID counts those",
    "primitive-id-no-gs-quads": "the same",
    "imageStore-array": "passes by itself; after the one of OpenGL 4.5 shader_runner says nothing",
}
_NEEDS = {"test_depth_samplers.py": "scipy", "test_context.py": "OpenGL"}
_NEEDS |= {"test_debug_scopes.py": "OpenGL"}
_VERDICT = re.compile(r'PIGLIT: \{"subtest": \{"(?P<name>[^"]+)" : "(?P<verdict>\w+)"')
_NO_CONTEXT = "Failed to create any GL context"
_BEGUN = re.compile(r"PIGLIT TEST: (\d+) - ")
_SOME_PERCENT = 90

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def moderngl_verdicts(way: Way, folder: Path, report: Path) -> dict[str, str]:
    """Of each of moderngl's tests."""
    command = [sys.executable, "-m", "pytest", str(folder), "-q", "-c", os.devnull]
    command += ["--rootdir", str(folder), "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["-p", "tests.opengl.moderngl_fixtures"]
    for name, package in _NEEDS.items():
        probe = subprocess.run([sys.executable, "-c", f"import {package}"], check=False)
        if probe.returncode:
            command.append(f"--ignore={folder / name}")
    done = way.run(*command, timeout_s=700, check=False)
    if not report.exists():
        raise AssertionError(
            f"pytest ended with {done.returncode}\n{done.stdout[-3000:]}{done.stderr}"
        )
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 (our own)
        bad = [each.tag for each in case if each.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}::{case.get('name')}"] = bad[0] if bad else "passed"
    return found


@pytest.fixture(scope="module")
def moderngl_tests() -> Path:
    """Their folder."""
    try:
        return suites.moderngl_tests()
    except suites.MissingError as error:
        pytest.skip(f"moderngl's tests are not here: {error}")


@pytest.fixture(scope="module")
def expected_of_moderngl(
    native: Way, moderngl_tests: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What native says."""
    return moderngl_verdicts(native, moderngl_tests, tmp_path_factory.mktemp("native") / "xml")


def test_moderngl(
    expected_of_moderngl: dict[str, str], moderngl_tests: Path, opengl: Way, tmp_path: Path
) -> None:
    found = moderngl_verdicts(opengl, moderngl_tests, tmp_path / "xml")
    assert found.keys() == expected_of_moderngl.keys()
    assert len(found) > 400
    different = {
        name: (verdict, found[name])
        for name, verdict in expected_of_moderngl.items()
        if found[name] != verdict and name not in KNOWN_MODERNGL
    }
    assert not different
    passed = sum(verdict == "passed" for verdict in found.values())
    assert passed > len(found) * _SOME_PERCENT / 100


def piglit_verdicts(way: Way, folder: Path) -> Counter[tuple[str, str]]:
    """Of the shader tests, many in one process; what needs a newer OpenGL says nothing."""
    scripts = sorted(map(str, (folder / "tests").rglob("*.shader_test")))
    assert len(scripts) > 500
    variables = {"PIGLIT_PLATFORM": "surfaceless_egl", "LD_LIBRARY_PATH": str(folder / "lib")}
    command = ["env", *(f"{name}={value}" for name, value in variables.items())]
    command.append(str(folder / "bin" / "shader_runner"))
    found: Counter[tuple[str, str]] = Counter()
    opener = scripts.pop(0)  # the first test of a process has no verdict of its own
    while scripts:
        done = way.run(*command, opener, *scripts, "-auto", "-fbo", timeout_s=700, check=False)
        lines = done.stdout.splitlines()  # the names are on stderr once more
        # A test for which the context is made anew says twice that it begins.
        begun = max((int(each[1]) for each in map(_BEGUN.match, lines) if each), default=1) - 1
        verdicts = filter(None, map(_VERDICT.match, lines))
        found += Counter((each["name"], each["verdict"]) for each in verdicts)
        # A context that cannot be had, or a crash, ends the process: the next one goes on after it.
        if done.returncode < 0 or (
            begun < len(scripts) and _NO_CONTEXT not in done.stdout + done.stderr
        ):
            found[Path(scripts[begun - 1]).stem, f"ended with {done.returncode}"] += 1
        scripts = scripts[max(begun, 1) :]
    return found


@pytest.fixture(scope="module")
def piglit() -> Path:
    """Its folder."""
    try:
        folder = suites.piglit()
    except suites.MissingError as error:
        pytest.skip(f"piglit is not here: {error}")
    lacks = subprocess.run(
        ["ldd", folder / "bin" / "shader_runner"],
        capture_output=True, text=True, check=True, timeout=20,
        env={**os.environ, "LD_LIBRARY_PATH": str(folder / "lib")},
    ).stdout  # fmt: skip
    if "not found" in lacks:
        pytest.skip(f"piglit lacks a library (Debian: libwaffle-1-0): {lacks}")
    return folder


@pytest.fixture(scope="module")
def expected_of_piglit(native: Way, piglit: Path) -> Counter[tuple[str, str]]:
    """What native says."""
    return piglit_verdicts(native, piglit)


def test_piglit(expected_of_piglit: Counter[tuple[str, str]], piglit: Path, opengl: Way) -> None:
    found = piglit_verdicts(opengl, piglit)
    lost = sorted((expected_of_piglit - found).elements())
    extra = sorted((found - expected_of_piglit).elements())
    unknown = [each for each in (*lost, *extra) if each[0] not in KNOWN_PIGLIT]
    # A test that native fails may pass through gpupool.
    unknown = [each for each in unknown if (each[0], "fail") not in expected_of_piglit]
    assert not unknown, f"native alone: {lost}\nthrough gpupool alone: {extra}"
    passed = sum(verdict == "pass" for _, verdict in found.elements())
    assert passed > expected_of_piglit.total() * _SOME_PERCENT / 100
