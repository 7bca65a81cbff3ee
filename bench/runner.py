"""The order of a run: every workload in every mode, interleaved within seconds.

One process a mode lives through the whole run. For each workload all of them build it at the same
time; then rounds follow, in which one process after the other times it while the rest are idle,
each round beginning with another mode; then all give their results, which must be native's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields

from gpupool.bench.counters import difference as difference_of
from gpupool.bench.link import Answer, Link, LinkError, all_cpu_s, cpu_s
from gpupool.bench.modes import MODES, NATIVE
from gpupool.bench.results import Row, Run, Sample
from gpupool.bench.stage import Stage
from gpupool.bench.workloads.base import Result, Workload, difference

_START_TIMEOUT_S = 180.0
_BUILD_TIMEOUT_S = 240.0
_ROUND_TIMEOUT_S = 60.0
_RESULT_TIMEOUT_S = 120.0
_IDLE_S = 5.0
_KEEP_EVERY_S = 30.0
_LEAST_ROUNDS = 3  # of a row that has begun, whatever the time limit
_SAMPLE_FIELDS = {each.name for each in fields(Sample)}


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    round_s: float
    deadline: float  # of time.monotonic()
    wants_torch: bool


def tell(text: str) -> None:
    """Progress, on stderr."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Runner:
    """Drives the processes and fills the Run."""

    def __init__(
        self,
        run: Run,
        plan: Plan,
        stage: Stage,
        keep: Callable[[], None],
    ) -> None:
        self._run, self._plan = run, plan
        self._stage, self._keep = stage, keep
        self._links: dict[str, Link] = {}
        self._kept_s = time.monotonic()

    def prepare(self) -> None:
        """Starts a process for every mode."""
        self._revive(self._run.modes)

    def workload(self, workload: Workload, left: int) -> None:
        """One row. `left`: how many workloads have yet to be run, this one among them."""
        row = Row(workload.name, workload.row_class)
        self._run.rows.append(row)
        seconds_left = self._plan.deadline - time.monotonic()
        if seconds_left <= 0:
            row.skipped = "the time limit was reached"
            self._run.lacks(row.skipped)
            return
        self._revive([mode for mode in self._run.modes if mode not in self._links])
        modes = self._build(workload, row)
        until = time.monotonic() + max(0.0, self._plan.deadline - time.monotonic()) / left
        if not row.skipped:
            self._rounds(workload, row, modes, until)
            self._results(workload, row)
        for mode, answer in self._all("drop", list(self._links), _RESULT_TIMEOUT_S, row).items():
            if "error" in answer:
                row.failed.setdefault(mode, f"drop: {answer['error']}")
        for mode in row.failed:  # an error of CUDA may stay in a process: the next row gets another
            self._drop_link(mode)
        tell(_line(row, self._run.modes))
        if time.monotonic() - self._kept_s > _KEEP_EVERY_S:
            self._keep()
            self._kept_s = time.monotonic()

    def idle(self) -> None:
        """CPU time of every process and its worker while nobody asks for anything."""
        links = {mode: link for mode, link in self._links.items() if link.alive}
        time.sleep(0.5)  # what the last row left behind is finished
        before = {
            mode: (cpu_s(link.pid), all_cpu_s(link.host_pids)) for mode, link in links.items()
        }
        time.sleep(_IDLE_S)
        for mode, link in links.items():
            client, worker = before[mode]
            self._run.idle[mode] = {
                "seconds": _IDLE_S,
                "client_cpu_s": cpu_s(link.pid) - client,
                "worker_cpu_s": all_cpu_s(link.host_pids) - worker,
            }
        self._keep()

    def end(self) -> None:
        """Lets every process leave."""
        for link in self._links.values():
            link.end()
        self._links.clear()

    def kill(self) -> None:
        """Ends every process at once."""
        for link in self._links.values():
            link.kill()
        self._links.clear()

    def _revive(self, modes: list[str]) -> None:
        """Starts the processes that are missing; all at once, for nothing is timed meanwhile."""
        for mode in modes:
            self._links[mode] = self._stage.start(mode)
        row = Row("start of the process", "")
        answers = self._all(
            "facts", modes, _START_TIMEOUT_S, row, wants_torch=self._plan.wants_torch
        )
        for mode, answer in answers.items():
            if "error" in answer:
                said = self._links[mode].last_words()
                self._run.problems.append(f"{mode}: {answer['error']} ({said})")
                self._drop_link(mode)
                continue
            self._run.processes[mode] = answer
        self._run.problems += [f"{mode}: {why}" for mode, why in row.failed.items()]

    def _drop_link(self, mode: str) -> None:
        link = self._links.pop(mode, None)
        if link is not None:
            link.kill()

    def _all(
        self, do: str, modes: list[str], timeout_s: float, row: Row, **words: object
    ) -> dict[str, Answer]:
        """Asks several processes at the same time. Who dies of it is taken out, with the reason."""
        asked: list[str] = []
        answers: dict[str, Answer] = {}
        for mode in modes:
            try:
                self._links[mode].send(do, **words)
                asked.append(mode)
            except LinkError as error:
                row.failed[mode] = str(error)
                self._drop_link(mode)
        deadline = time.monotonic() + timeout_s
        for mode in asked:
            try:
                answers[mode] = self._links[mode].receive(max(1.0, deadline - time.monotonic()))
            except LinkError as error:
                row.failed[mode] = f"{do}: {error}"
                self._drop_link(mode)
        return answers

    def _build(self, workload: Workload, row: Row) -> list[str]:
        """The modes that have built it."""
        built = []
        modes = [mode for mode in self._links if not workload.modes or mode in workload.modes]
        turns = [modes]
        if workload.native_first and NATIVE in modes:
            turns = [[NATIVE], [mode for mode in modes if mode != NATIVE]]
        answers: dict[str, Answer] = {}
        for turn in turns:
            answers |= self._all("build", turn, _BUILD_TIMEOUT_S, row, name=workload.name)
        for mode, answer in answers.items():
            if "skip" in answer:
                row.skipped = str(answer["skip"])
            elif "error" in answer:
                row.failed[mode] = str(answer["error"])
            else:
                built.append(mode)
                link = self._links[mode]
                served = None if mode == NATIVE else self._stage.host.session_of(link.pid)
                if served is not None:  # since its first call of CUDA
                    more = self._stage.host.tls_pids() if MODES[mode].transport == "tls" else []
                    link.session = served.session
                    link.host_pids = (served.worker_pid, *more)
        return built

    def _rounds(self, workload: Workload, row: Row, modes: list[str], until: float) -> None:
        """Rounds until there are enough, or the time for this row is over."""
        seconds = self._plan.round_s * workload.duration_factor
        longest_s = 0.0
        # Round 0 is not kept: it corrects the guess of how long a step takes.
        for number in range(self._plan.rounds + 1):
            begin = time.monotonic()
            if number > _LEAST_ROUNDS and begin + longest_s > until:
                row.note = f"{number - 1} of {self._plan.rounds} rounds fitted into the time limit"
                self._run.lacks("not all rounds fitted into the time limit")
                return
            turn = number % len(modes) if modes else 0
            for mode in modes[turn:] + modes[:turn]:
                if mode in row.failed:
                    continue
                sample = self._time(row, mode, number, seconds / 4 if number == 0 else seconds)
                if sample is not None and number > 0:
                    row.samples.setdefault(mode, []).append(sample)
            if number > 0:
                longest_s = max(longest_s, time.monotonic() - begin)

    def _time(self, row: Row, mode: str, number: int, seconds: float) -> Sample | None:
        link = self._links[mode]
        worker_s = all_cpu_s(link.host_pids) if link.host_pids else None
        moved = self._stage.host.moved(link.session) if link.session else None
        try:
            answer = link.ask(_ROUND_TIMEOUT_S + seconds, "time", seconds=seconds)
        except LinkError as error:
            row.failed[mode] = str(error)
            self._drop_link(mode)
            return None
        if "error" in answer:
            row.failed[mode] = str(answer["error"])
            return None
        if worker_s is not None:
            worker_s = all_cpu_s(link.host_pids) - worker_s
        if moved is not None and (
            more := difference_of(moved, self._stage.host.moved(link.session))
        ):
            answer["counts"] = {**(answer.get("counts") or {}), **more}
        known = {name: value for name, value in answer.items() if name in _SAMPLE_FIELDS}
        return Sample(round=number, worker_cpu_s=worker_s, **known)

    def _results(self, workload: Workload, row: Row) -> None:
        """Every mode's result, compared with native's."""
        modes = [mode for mode in row.samples if mode in self._links and mode not in row.failed]
        for mode, answer in self._all("result", modes, _RESULT_TIMEOUT_S, row).items():
            if "error" in answer:
                row.failed[mode] = str(answer["error"])
            else:
                row.results[mode] = Result(answer["digest"], tuple(answer["values"]))
        if NATIVE not in self._run.modes:
            return
        for mode, result in row.results.items():
            if NATIVE not in row.results:
                row.different[mode] = "native has no result to compare with"
            elif why := difference(row.results[NATIVE], result, workload.tolerance):
                row.different[mode] = why


def _line(row: Row, modes: list[str]) -> str:
    """A row, as progress."""
    if row.skipped:
        return f"{row.name}: skipped: {row.skipped}"
    parts = []
    for mode in modes:
        if why := row.failed.get(mode) or row.different.get(mode):
            parts.append(f"{mode} FAILED: {why}")
        elif mode != NATIVE and (one := row.ratio(mode)):
            parts.append(f"{mode} {one.median:.3f}")
    return f"{row.name}: " + ", ".join(parts)
