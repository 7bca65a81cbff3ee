"""A short run of the fuzz targets: the corpus in the repository, then some new inputs.

`./run fuzz` runs them for as long as one likes; docs/security.md says what is fuzzed and how far.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.builds import BUILD_TIMEOUT_S, FUZZ, build
from tests.fuzz.targets import BUILD, TARGETS, missing, run_target

NEW_INPUTS_S = 5
TIMEOUT_S = 240
# All of the worker or the software GPU is in these: compiling that takes minutes.
SLOW = ("decoder", "session", "quota", "ptx")
QUICK = tuple(name for name in TARGETS if name not in SLOW)


def build_targets(*names: str) -> None:
    """Builds them, or skips where clang has no libFuzzer."""
    runtime = "libclang_rt.fuzzer-x86_64.a"
    try:
        asked = ["clang++", f"-print-file-name={runtime}"]
        found = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout
    except FileNotFoundError:
        pytest.skip("clang is missing")
    if not Path(found.strip()).exists():
        pytest.skip(f"clang has no {runtime}: libclang-rt-dev is missing")
    assert build("fuzz", FUZZ, *(f"fuzz_{name}" for name in names)) == BUILD
    assert not missing(*names)


@pytest.fixture(scope="module")
def _quick_targets() -> None:
    build_targets(*QUICK)


@pytest.fixture(scope="module")
def _slow_targets() -> None:
    build_targets(*SLOW)


def check(name: str, folder: Path) -> None:
    """Nothing that was ever found is back, and nothing new turns up in a few seconds."""
    target = TARGETS[name]
    known = folder / "known"
    shutil.copytree(target.kept, known)
    done = run_target(
        target,
        [
            f"-max_total_time={NEW_INPUTS_S}",
            f"-artifact_prefix={folder}/",
            "-print_final_stats=1",
            str(known),
        ],
        timeout_s=TIMEOUT_S,
    )
    assert done.code == 0, done.output[-8000:]
    assert done.executions > len(list(target.kept.iterdir()))


@pytest.mark.usefixtures("_quick_targets")
@pytest.mark.timeout(BUILD_TIMEOUT_S + TIMEOUT_S)
@pytest.mark.parametrize("name", QUICK)
def test_short_run(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow  # clang builds worker and software GPU once more for it
@pytest.mark.usefixtures("_slow_targets")
@pytest.mark.timeout(BUILD_TIMEOUT_S + TIMEOUT_S)
@pytest.mark.parametrize("name", SLOW)
def test_short_run_of_the_large_ones(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)
