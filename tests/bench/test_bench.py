"""`gpupool bench` on the software GPU: every driver-level workload runs and gives native's results.

Nothing here is about speed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpupool.bench.workloads import everything
from gpupool.bench.workloads.base import START
from tests.conftest import ROOT, native_dir

MODES = ("native", "shm", "stream", "tcp", "tls", "tcp+500us")
COMMAND = (sys.executable, "-m", "gpupool.cli", "bench", "--small", "--gpu", "software")


def environment() -> dict[str, str]:
    """The checkout's package and the build."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "GPUPOOL_NATIVE_DIR": str(native_dir())}


def bench(out: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Runs it; what it said, and its report."""
    if not (native_dir() / "lib" / "bench").exists():
        pytest.skip(f"{native_dir()} has no lib/bench: run ./run build")
    done = subprocess.run(
        [*COMMAND, "--python", sys.executable, "--out", str(out), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env=environment(),
    )
    assert (out / "report.json").exists(), done.stderr
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return done, report


@pytest.mark.softgpu
def test_driver_level_workloads_give_natives_results(tmp_path: Path) -> None:
    done, report = bench(
        tmp_path,
        *("--needs", "driver", "--modes", ",".join(MODES), "--rounds", "2", "--seconds", "0.002"),
    )
    assert done.returncode == 0, done.stderr
    assert report["failures"] == []
    assert report["incomplete"] == ""
    rows = [row for row in report["rows"] if row["class"] != START]
    assert [row["name"] for row in rows] == [w.name for w in everything().values() if not w.needs]
    for row in rows:
        wanted = [each for each in MODES if each in (everything()[row["name"]].modes or MODES)]
        assert list(row["modes"]) == wanted, row["name"]
        assert set(row["results"]) == set(wanted), row["name"]
        for mode, summary in row["modes"].items():
            assert len(summary["samples"]) == 2
            assert summary["median_s"] > 0
            assert (summary["to_native"] is None) == (mode == "native")
    starts = {row["name"]: row["modes"] for row in report["rows"] if row["class"] == START}
    assert len(starts) == 3
    for mode in ("native", "shm", "tcp", "tls"):
        assert len(starts["start_driver_first"][mode]["samples"]) == 1
        assert len(starts["start_driver_second"][mode]["samples"]) == 2
    launch = next(row for row in report["rows"] if row["name"] == "launch")["modes"]["shm"]
    assert launch["counts"]["messages"] == pytest.approx(1, abs=0.1)
    assert launch["worker_cpu_s"] > 0
    copy = next(row for row in report["rows"] if row["name"] == "h2d_pageable_1MiB")["modes"]
    assert copy["native"]["counts"] is None
    assert copy["tcp"]["counts"]["bytes_to_device"] == pytest.approx(1 << 20, rel=0.5)
    assert report["geometric_means"]["shm"]["all"]["pairs"] == 2
    assert set(report["idle"]) == set(MODES)
    assert report["delays"]["tcp+500us"]["wanted_us"] == 500
    markdown = (tmp_path / "report.md").read_text()
    assert markdown in done.stdout
    assert "| launch | launch-bound |" in markdown


@pytest.mark.softgpu
def test_time_limit_ends_a_run_with_what_it_has(tmp_path: Path) -> None:
    done, report = bench(
        tmp_path,
        *("--modes", "native,shm", "--rounds", "500", "--seconds", "0.05", "--time-limit", "6"),
        *("launch", "event_query", "h2d_pinned_4KiB"),
    )
    assert done.returncode == 3, done.stderr
    assert "time limit" in report["incomplete"]
    assert [row["name"] for row in report["rows"]] == ["launch", "event_query", "h2d_pinned_4KiB"]
    counts = [len(row["modes"]["shm"]["samples"]) for row in report["rows"] if row["modes"]]
    assert counts
    assert all(0 < each < 500 for each in counts)


@pytest.mark.softgpu
def test_a_run_that_is_ended_writes_what_it_has(tmp_path: Path) -> None:
    if not (native_dir() / "lib" / "bench").exists():
        pytest.skip(f"{native_dir()} has no lib/bench: run ./run build")
    process = subprocess.Popen(
        [
            *(*COMMAND, "--python", sys.executable, "--out", str(tmp_path)),
            *("--modes", "native,shm", "--rounds", "2", "--seconds", "1", "launch", "event_query"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stderr is not None
    said = process.stderr.readline()
    assert said.startswith("bench: launch:")
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 3, said + rest
    assert time.monotonic() - begin < 40
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["incomplete"] == "cut short by SIGTERM"
    assert len(report["rows"][0]["modes"]["shm"]["samples"]) == 2


@pytest.mark.softgpu
def test_without_openssl_the_other_modes_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # a folder without any command
    done, report = bench(
        tmp_path / "out",
        "--modes",
        "native,shm,tls",
        "--rounds",
        "1",
        "--seconds",
        "0.01",
        "launch",
    )
    assert done.returncode == 3, done.stderr
    assert "mode tls is left out: there is no openssl command" in report["incomplete"]
    assert set(report["rows"][0]["modes"]) == {"native", "shm"}


def test_unknown_names_are_refused() -> None:
    done = subprocess.run(
        [*COMMAND, "no_such_workload"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment(),
    )
    assert done.returncode == 2
    assert "no workload is called no_such_workload" in done.stderr
