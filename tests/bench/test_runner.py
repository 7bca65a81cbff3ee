"""The order of a run, with processes that answer from a script in place of GPUs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from gpupool.bench.link import Link
from gpupool.bench.results import Run
from gpupool.bench.runner import Plan, Runner
from gpupool.bench.stage import Stage
from gpupool.bench.workloads.base import LAUNCH, Running, Setting, Workload

# Answers what the table says; a list is worked off, its last entry stays. None: it dies.
PROCESS = """
import json, sys
table = json.loads(sys.argv[1])
for line in sys.stdin:
    asked = json.loads(line)["do"]
    answer = table.get(asked, {})
    if isinstance(answer, list):
        answer = answer.pop(0) if len(answer) > 1 else answer[0]
    if answer is None:
        sys.exit(3)
    print(json.dumps(answer), flush=True)
"""
ROUND = {"operations": 10, "total_s": 0.5, "issue_s": 0.1, "client_cpu_s": 0.1, "bytes_moved": 0}
GOOD: dict[str, Any] = {"time": ROUND, "result": {"digest": "ab", "values": []}}


class FakeHost:
    """No sessions."""

    def session_of(self, client: int) -> None:
        assert client > 0


class FakeStage:
    """Starts scripted processes; each start of a mode takes the next of its scripts."""

    def __init__(self, folder: Path, scripts: dict[str, list[dict[str, Any]]]) -> None:
        self.host = FakeHost()
        self.started: list[str] = []
        self._folder, self._scripts = folder, scripts

    def start(self, mode: str) -> Link:
        self.started.append(mode)
        scripts = self._scripts[mode]
        table = json.dumps(scripts.pop(0) if len(scripts) > 1 else scripts[0])
        return Link([sys.executable, "-c", PROCESS, table], os.environ, self._folder / mode)


def never(_: Setting) -> Running:
    raise AssertionError("the runner itself builds nothing")


def workload(name: str = "one") -> Workload:
    return Workload(name, LAUNCH, never)


def run_with(
    folder: Path,
    scripts: dict[str, list[dict[str, Any]]],
    names: tuple[str, ...] = ("one",),
    limit_s: float = 60.0,
    keep: Callable[[], None] = lambda: None,
) -> tuple[Run, FakeStage]:
    """A run of four rounds."""
    run = Run(list(scripts), incomplete="")
    stage = FakeStage(folder, scripts)
    plan = Plan(4, 0.01, time.monotonic() + limit_s, wants_torch=False)
    runner = Runner(run, plan, cast("Stage", stage), keep)
    try:
        runner.prepare()
        for number, name in enumerate(names):
            runner.workload(workload(name), len(names) - number)
        runner.end()
    finally:
        runner.kill()
    return run, stage


def test_every_round_is_a_pair(tmp_path: Path) -> None:
    slower = {**GOOD, "time": {**ROUND, "total_s": 1.0}}
    run, _ = run_with(tmp_path, {"native": [GOOD], "shm": [slower]})
    found = run.ratios()["shm"]["one"]
    assert (found.median, found.pairs) == (2.0, 4)
    assert run.failures() == []


def test_another_result_than_natives_fails_the_run(tmp_path: Path) -> None:
    wrong = {**GOOD, "result": {"digest": "cd", "values": []}}
    run, _ = run_with(tmp_path, {"native": [GOOD], "shm": [GOOD], "tcp": [wrong]})
    assert run.failures() == ["one, tcp: digest cd, native has ab"]
    assert "one" in run.ratios()["shm"]
    assert "tcp" not in run.ratios()


def test_without_natives_result_nothing_counts(tmp_path: Path) -> None:
    broken = {**GOOD, "result": {"error": "CudaError: 700"}}
    run, _ = run_with(tmp_path, {"native": [broken], "shm": [GOOD]})
    assert "one, native: CudaError: 700" in run.failures()
    assert run.ratios() == {}


def test_a_process_that_dies_fails_its_row_and_is_there_for_the_next(tmp_path: Path) -> None:
    dying = {**GOOD, "time": [ROUND, ROUND, None]}
    run, stage = run_with(tmp_path, {"native": [GOOD], "shm": [dying, GOOD]}, names=("one", "two"))
    assert stage.started == ["native", "shm", "shm"]
    assert [line.split(":")[0] for line in run.failures()] == ["one, shm"]
    assert "ended with 3" in run.failures()[0]
    assert set(run.ratios()["shm"]) == {"two"}


def test_a_row_that_failed_leaves_no_process_to_the_next(tmp_path: Path) -> None:
    """Also when only giving back what it held has failed."""
    stuck = {**GOOD, "drop": {"error": "CudaError: cuMemFree_v2 returned 700"}}
    run, stage = run_with(tmp_path, {"native": [GOOD], "shm": [stuck, GOOD]}, names=("one", "two"))
    assert run.failures() == ["one, shm: drop: CudaError: cuMemFree_v2 returned 700"]
    assert stage.started == ["native", "shm", "shm"]
    assert set(run.ratios()["shm"]) == {"two"}


def test_what_is_not_there_is_skipped_with_its_reason(tmp_path: Path) -> None:
    without = {**GOOD, "build": {"skip": "JAX is not installed"}}
    run, _ = run_with(tmp_path, {"native": [without], "shm": [without]})
    assert run.rows[0].skipped == "JAX is not installed"
    assert run.failures() == []


def test_time_that_is_over_is_told(tmp_path: Path) -> None:
    run, _ = run_with(tmp_path, {"native": [GOOD], "shm": [GOOD]}, limit_s=0.0)
    assert run.rows[0].skipped == run.incomplete == "the time limit was reached"
