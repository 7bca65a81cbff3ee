"""Scenes drawn through gpupool have the very pixels that the host's own OpenGL gives."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.opengl.ways import Way

PACKAGES = {"moderngl": "moderngl", "vtk": "vtkmodules"}


def drawn(
    way: Way, program: str, folder: Path, **variables: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a program of scenes said, and its pictures."""
    if importlib.util.find_spec(PACKAGES[program]) is None:
        pytest.skip(f"the Python package {program} is not installed")
    target = folder / f"{way.name}.npz"
    done = way.run(
        sys.executable, "-m", f"tests.opengl.scenes_{program}", str(target), variables=variables
    )
    with np.load(target) as found:
        return json.loads(done.stdout.splitlines()[-1]), dict(found)


def compare(native: dict[str, Any], ours: dict[str, Any]) -> None:
    """Every scene, exactly; the failure says how far off it is."""
    assert native.keys() == ours.keys()
    wrong = []
    for name, expected in native.items():
        assert expected.shape == ours[name].shape, name
        assert expected.min() != expected.max(), f"{name} is empty"
        if not np.array_equal(expected, ours[name]):
            off = np.abs(expected.astype(float) - ours[name].astype(float))
            wrong.append(f"{name}: {np.count_nonzero(off)} differ, by up to {off.max():g}")
    assert not wrong, wrong


EGL = {"VTK_DEFAULT_OPENGL_WINDOW": "vtkEGLRenderWindow"}


@pytest.fixture(scope="module")
def expected(native: Way, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What native draws with moderngl."""
    return drawn(native, "moderngl", tmp_path_factory.mktemp("native"))[1]


@pytest.fixture(scope="module")
def expected_of_vtk(native: Way, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What native draws with VTK, the same with EGL and GLX."""
    return drawn(native, "vtk", tmp_path_factory.mktemp("native"), **EGL)[1]


def test_moderngl(expected: dict[str, Any], opengl: Way, tmp_path: Path) -> None:
    told, found = drawn(opengl, "moderngl", tmp_path)
    assert told["renderer"].startswith("virgl")
    assert told["code"] >= 430, told
    assert not told["skipped"]
    compare(expected, found)


def test_vtk_with_egl(expected_of_vtk: dict[str, Any], opengl: Way, tmp_path: Path) -> None:
    told, found = drawn(opengl, "vtk", tmp_path, **EGL)
    assert told["renderer"].startswith("virgl")
    assert told["window"] == "vtkEGLRenderWindow"
    compare(expected_of_vtk, found)


def test_vtk_with_glx(
    expected_of_vtk: dict[str, Any], opengl: Way, display: str, tmp_path: Path
) -> None:
    told, found = drawn(opengl, "vtk", tmp_path, DISPLAY=display)
    assert told["renderer"].startswith("virgl")
    assert told["window"] == "vtkXOpenGLRenderWindow"
    compare(expected_of_vtk, found)
