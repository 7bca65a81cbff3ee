"""Pictures of a run, where matplotlib is installed; without it the report says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpupool.bench import plots
from gpupool.bench.results import Row, Run, Sample
from tests.conftest import ROOT


def run_of_two() -> Run:
    """Native and shared memory, one row."""
    row = Row("launch", "launch-bound")
    for mode, seconds in (("native", 1.0), ("shm", 0.5)):
        row.samples[mode] = [Sample(number, 1, seconds, seconds, 0.0, None) for number in (1, 2)]
    return Run(["native", "shm"], rows=[row])


def test_a_picture_for_every_mode(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert plots.draw(run_of_two(), tmp_path) == [tmp_path / "ratios-shm.png"]
    assert (tmp_path / "ratios-shm.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_is_told(tmp_path: Path) -> None:
    """In an interpreter that has none of anybody's packages."""
    program = (
        "import argparse, pathlib\n"
        "from gpupool.bench import command\n"
        "from gpupool.bench.results import Run\n"
        f"command._plot(Run(['native']), argparse.Namespace(out=pathlib.Path({str(tmp_path)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert "matplotlib is not installed" in done.stderr
