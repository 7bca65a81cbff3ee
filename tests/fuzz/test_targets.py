"""A short run of every fuzz target: the corpus in the repository, then some new inputs.

`./run fuzz` runs them for as long as one likes; docs/security.md says what is fuzzed and how far.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, missing, run_target

NEW_INPUTS_S = 5
TIMEOUT_S = 240


@pytest.fixture(autouse=True)
def _built() -> None:
    if reason := missing():
        pytest.skip(reason)


@pytest.mark.slow  # clang builds worker and software GPU once more for it: ./run fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_short_run(name: str, tmp_path: Path) -> None:
    """Nothing that was ever found is back, and nothing new turns up in a few seconds."""
    target = TARGETS[name]
    known = tmp_path / "known"
    shutil.copytree(target.kept, known)
    done = run_target(
        target,
        [
            f"-max_total_time={NEW_INPUTS_S}",
            f"-artifact_prefix={tmp_path}/",
            "-print_final_stats=1",
            str(known),
        ],
        timeout_s=TIMEOUT_S,
    )
    assert done.code == 0, done.output[-8000:]
    assert done.executions > len(list(target.kept.iterdir()))
