"""Builds with sanitizers, which tests make for themselves beside the ordinary one.

They take a minute or two of two cores the first time, and next to nothing afterwards: ninja, and
ccache where it is installed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tree import ROOT

BUILD_TIMEOUT_S = 1500  # of cores that others use too

# The same as in ./run, which makes this build for `./run fuzz`.
FUZZ = (
    "-DCMAKE_CXX_COMPILER=clang++",
    "-DCMAKE_BUILD_TYPE=None",
    "-DCMAKE_CXX_FLAGS=-O1 -g1",
    "-DGPUPOOL_FUZZ=ON",
)
# Compiling takes most of the time, so nothing is optimised.
THREADS = (
    "-DCMAKE_BUILD_TYPE=None",
    "-DCMAKE_CXX_FLAGS=-O0 -g1",
    "-DGPUPOOL_SANITIZE=thread",
    "-DGPUPOOL_TESTS=ON",
)


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT_S
    )
    if done.returncode != 0:
        pytest.fail(f"{command[0]} failed:\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}")


def build(name: str, settings: tuple[str, ...], *targets: str) -> Path:
    """Builds targets in build/NAME; that folder. A build that fails is a test that fails."""
    tools = Path(sys.executable).parent
    cmake, ninja = (
        str(tools / tool) if (tools / tool).exists() else shutil.which(tool)
        for tool in ("cmake", "ninja")
    )
    if cmake is None or ninja is None:
        pytest.skip("cmake and ninja are missing: pip install --group build")
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "build.ninja").exists():
            launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
            common = [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython3_EXECUTABLE={sys.executable}"]
            _run(cmake, "-S", ".", "-B", folder, "-G", "Ninja", *common, *launcher, *settings)
        jobs = len(os.sched_getaffinity(0))
        _run("nice", ninja, f"-j{jobs}", "-C", folder, *targets)
    return folder
