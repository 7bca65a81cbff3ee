"""The C++ tests, one pytest item for each doctest program."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.builds import BUILD_TIMEOUT_S, THREADS, build
from tests.tree import ROOT

NATIVE = Path(os.environ.get("GPUPOOL_NATIVE_DIR", ROOT / "build" / "native"))
PROGRAMS = ["gpupool_tests", "worker_tests", "softgpu_engine_tests", "arbiter_tests", "vsock_tests"]
TIMEOUT_S = 280  # below pytest's own, so that what the program printed is shown

# A guest runtime has one session a process, so each case of this program runs alone.
TRANSPORTS = [
    "threads over shared memory",
    "threads over a stream",
    "threads over a stream that sends by reference",
]


def run_program(name: str, *arguments: str, folder: Path = NATIVE) -> None:
    """Runs a doctest program of a build; fails with what it printed."""
    program = folder / "tests" / "cpp" / name
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


@pytest.fixture(scope="module")
def with_thread_sanitizer() -> Path:
    """The build in which threads that race with each other are reported."""
    if not Path("/usr/include/doctest/doctest.h").exists():
        pytest.skip("doctest-dev is missing")
    return build("tsan", THREADS, "transport_tests")


@pytest.mark.timeout(BUILD_TIMEOUT_S + TIMEOUT_S)
@pytest.mark.parametrize("case", TRANSPORTS)
def test_no_two_threads_race(case: str, with_thread_sanitizer: Path) -> None:
    """A report of ThreadSanitizer makes the program's exit code 66."""
    run_program("transport_tests", "--no-skip", f"--test-case={case}", folder=with_thread_sanitizer)
