"""Reports read back and put together."""

from __future__ import annotations

import json

import pytest

from gpupool.bench import load, report
from gpupool.bench.delay import Delayed
from gpupool.bench.results import Row, Run, Sample
from gpupool.bench.workloads.base import Result


def run_of(name: str, modes: dict[str, float], first_round: int = 1) -> Run:
    """One row; seconds of each mode."""
    row = Row(name, "launch-bound")
    for mode, seconds in modes.items():
        rounds = range(first_round, first_round + 6)
        row.samples[mode] = [
            Sample(
                number, 2, seconds, seconds / 2, 0.1, None, 4, {"messages": 3, "waits": {"a": 1}}
            )
            for number in rounds
        ]
        row.results[mode] = Result("ab", (1.0, 2.0))
    run = Run(list(modes), {"command": name, "date": "today"}, rows=[row], incomplete="")
    run.delays["tcp+50us"] = Delayed(1, 50, 51.5, 3.0, 4.0)
    run.idle["shm"] = {"seconds": 5.0, "client_cpu_s": 0.0, "worker_cpu_s": 0.0}
    return run


def test_a_report_survives_the_way_through_json() -> None:
    run = run_of("a", {"native": 1.0, "shm": 0.5})
    once = report.as_json(run)
    again = report.as_json(load.from_json(json.loads(json.dumps(once))))
    assert json.dumps(again) == json.dumps(once)
    assert report.as_markdown(load.from_json(once)) == report.as_markdown(run)


def test_rows_of_several_runs_stand_together() -> None:
    whole = load.together(
        [
            run_of("a", {"native": 1.0, "shm": 0.5}),
            run_of("b", {"native": 1.0, "tcp": 3.0}),
        ]
    )
    assert whole.modes == ["native", "shm", "tcp"]
    ratios = whole.ratios()
    assert ratios["shm"]["a"].median == 0.5
    assert ratios["tcp"]["b"].median == 3.0
    assert whole.environment["command"] == "a; b"


def test_rounds_of_one_run_never_pair_with_those_of_another() -> None:
    """Native was twice as slow in the second run, and so was everything else."""
    whole = load.together(
        [
            run_of("a", {"native": 1.0, "shm": 0.5}),
            run_of("a", {"native": 2.0, "shm": 1.0}),
        ]
    )
    found = whole.ratios()["shm"]["a"]
    assert (found.pairs, found.low, found.high) == (12, 0.5, 0.5)


def test_a_failure_in_one_run_is_one_of_the_whole() -> None:
    bad = run_of("a", {"native": 1.0, "shm": 0.5})
    bad.rows[0].different["shm"] = "digest"
    whole = load.together([run_of("a", {"native": 1.0, "shm": 0.5}), bad])
    assert "a" not in whole.ratios().get("shm", {})
    assert whole.failures() == ["a, shm: digest"]


def test_what_is_no_report_is_refused() -> None:
    with pytest.raises(load.LoadError, match="format None"):
        load.from_json({})
    with pytest.raises(load.LoadError, match="KeyError"):
        load.from_json({"format": report.FORMAT, "modes": []})
