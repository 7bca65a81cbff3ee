"""Programs that are started anew each round: what they print is compared, what fails is told."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from gpupool.bench.results import Run
from gpupool.bench.starts import Program, Starts
from gpupool.bench.workloads.base import Setting

PRINTS = "import os; print(os.environ['ANSWER'], flush=True)"


def measured(folder: Path, text: str, answers: dict[str, str], warm_up: str = "") -> Run:
    """Three rounds of a program; `answers`: what each mode's variables say."""
    run = Run(list(answers), incomplete="")
    variables = {mode: {**os.environ, "ANSWER": answer} for mode, answer in answers.items()}
    starts = Starts(run, sys.executable, variables, folder)
    starts.measure(Program("one", "", text, warm_up), Setting(), 3, time.monotonic() + 60)
    return run


def test_the_first_start_is_a_row_of_its_own(tmp_path: Path) -> None:
    run = measured(tmp_path, PRINTS, {"native": "7", "shm": "7"})
    counts = {row.name: len(row.samples["shm"]) for row in run.rows}
    assert counts == {"one_first": 1, "one_second": 3, "one_second_to_exit": 3}
    assert run.failures() == []
    assert set(run.ratios()["shm"]) == {"one_second"}


def test_other_output_than_natives_is_a_failure(tmp_path: Path) -> None:
    run = measured(tmp_path, PRINTS, {"native": "7", "shm": "8"})
    assert "one_second, shm: printed 8, native 7" in run.failures()


def test_a_program_that_fails_is_told_and_not_started_again(tmp_path: Path) -> None:
    text = "import os, sys; open(os.environ['ANSWER'], 'a').write('x'); sys.exit('no GPU')"
    run = measured(tmp_path, text, {"native": str(tmp_path / "count")})
    assert run.failures() == ["one_second, native: exit code 1: no GPU"]
    assert (tmp_path / "count").read_text() == "x"


def test_a_program_whose_package_is_missing_is_skipped(tmp_path: Path) -> None:
    run = measured(tmp_path, PRINTS, {"native": "7"}, warm_up="import no_such_package")
    assert all("no_such_package" in row.skipped for row in run.rows)
    assert run.failures() == []
