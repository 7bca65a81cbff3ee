"""The C++ tests, one pytest item for each doctest program."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.tree import ROOT

NATIVE = Path(os.environ.get("GPUPOOL_NATIVE_DIR", ROOT / "build" / "native"))
PROGRAMS = ["gpupool_tests", "worker_tests", "softgpu_engine_tests"]
TIMEOUT_S = 280  # below pytest's own, so that what the program printed is shown


# A guest runtime has one session a process, so each case of this program runs alone.
TRANSPORTS = ["threads over shared memory", "threads over a stream"]


def run_program(name: str, *arguments: str) -> None:
    """Runs a doctest program of the build; fails with what it printed."""
    program = NATIVE / "tests" / "cpp" / name
    if not program.exists():
        pytest.skip(f"{program} is not built: doctest-dev is missing")
    done = subprocess.run(
        [program, "--no-colors", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
    assert "Status: SUCCESS!" in done.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_cpp(name: str) -> None:
    run_program(name)


@pytest.mark.parametrize("case", TRANSPORTS)
def test_both_ends_in_one_process(case: str) -> None:
    run_program("transport_tests", "--no-skip", f"--test-case={case}")
