"""What a run has found so far; the report (bench/report.py) is made of it at any moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gpupool.bench import ratio
from gpupool.bench.delay import Delayed
from gpupool.bench.modes import NATIVE
from gpupool.bench.ratio import Ratio
from gpupool.bench.workloads.base import Result


@dataclass(frozen=True)
class Sample:
    """One round of one workload in one mode. Times are of the whole round."""

    round: int
    operations: int
    total_s: float
    issue_s: float  # until the program's thread was free
    client_cpu_s: float
    worker_cpu_s: float | None
    bytes_moved: int = 0  # by one operation
    counts: dict[str, Any] | None = None  # of the guest runtime: messages, waits, bytes

    @property
    def each_s(self) -> float:
        """One operation."""
        return self.total_s / self.operations


@dataclass
class Row:
    """A workload in every mode."""

    name: str
    row_class: str
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    different: dict[str, str] = field(default_factory=dict)  # mode to how its result differs
    failed: dict[str, str] = field(default_factory=dict)
    skipped: str = ""
    note: str = ""
    aside: bool = False  # told, but no part of means and targets
    # The interval of a ratio costs milliseconds, and reports are written again and again.
    _known: dict[tuple[tuple[float, float], ...], Ratio | None] = field(default_factory=dict)

    def ratio(self, mode: str) -> Ratio | None:
        """To native, of rounds in which both ran."""
        native = {each.round: each.each_s for each in self.samples.get(NATIVE, [])}
        pairs = tuple(
            (native[each.round], each.each_s)
            for each in self.samples.get(mode, [])
            if each.round in native
        )
        if pairs not in self._known:
            self._known[pairs] = ratio.of_pairs(pairs)
        return self._known[pairs]


@dataclass
class Run:
    """Everything."""

    modes: list[str]
    environment: dict[str, Any] = field(default_factory=dict)
    processes: dict[str, dict[str, Any]] = field(default_factory=dict)  # mode to its facts
    delays: dict[str, Delayed] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    idle: dict[str, dict[str, float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    incomplete: str = "it has only begun"  # why rows or rounds are missing; empty: none are

    def lacks(self, why: str) -> None:
        """Notes a reason why something is missing; each is told once."""
        if why not in self.incomplete:
            self.incomplete = "; ".join(filter(None, (self.incomplete, why)))

    def ratios(self) -> dict[str, dict[str, Ratio]]:
        """Mode to row to ratio, for means and targets; a row with a wrong result has none."""
        found: dict[str, dict[str, Ratio]] = {}
        for mode in self.modes:
            if mode == NATIVE:
                continue
            for row in self.rows:
                one = None if row.aside else row.ratio(mode)
                if one is not None and mode not in row.different and mode not in row.failed:
                    found.setdefault(mode, {})[row.name] = one
        return found

    def failures(self) -> list[str]:
        """What makes the run a failed one."""
        rows = [
            f"{row.name}, {mode}: {why}"
            for row in self.rows
            for kind in (row.failed, row.different)
            for mode, why in kind.items()
        ]
        return [*self.problems, *rows]
