"""Reports read back: to put runs together that were made one after the other, and to draw and judge
them elsewhere."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from gpupool.bench.delay import Delayed
from gpupool.bench.report import FORMAT
from gpupool.bench.results import Row, Run, Sample
from gpupool.bench.workloads.base import Result

# Rounds of one run never pair with those of another.
_ROUNDS_APART = 1_000_000


class LoadError(ValueError):
    """This is no report, or one of another version."""


def from_json(report: dict[str, Any]) -> Run:
    """The run that a report was made of. Raises LoadError."""
    if report.get("format") != FORMAT:
        raise LoadError(f"format {report.get('format')!r}, this version reads {FORMAT}")
    try:
        run = Run(
            modes=list(report["modes"]),
            environment=report["environment"],
            processes=report["processes"],
            delays={mode: Delayed(**each) for mode, each in report["delays"].items()},
            rows=[_row(each) for each in report["rows"]],
            idle=report["idle"],
            problems=list(report["problems"]),
            incomplete=report["incomplete"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"{type(error).__name__}: {error}") from error
    return run


def _row(found: dict[str, Any]) -> Row:
    known = {each.name for each in fields(Sample)}
    return Row(
        found["name"],
        found["class"],
        samples={
            mode: [
                Sample(**{name: value for name, value in each.items() if name in known})
                for each in summary["samples"]
            ]
            for mode, summary in found["modes"].items()
        },
        results={
            mode: Result(each["digest"], tuple(each["values"]))
            for mode, each in found["results"].items()
        },
        different=found["different"],
        failed=found["failed"],
        skipped=found["skipped"],
        note=found["note"],
        aside=found["aside"],
    )


def together(runs: list[Run]) -> Run:
    """All rows of all runs. Rounds of a row in several runs are added up; who failed in one has
    failed."""
    modes = list(dict.fromkeys(mode for run in runs for mode in run.modes))
    whole = Run(modes, environment=dict(runs[0].environment), incomplete="")
    whole.environment["command"] = "; ".join(str(run.environment["command"]) for run in runs)
    rows: dict[str, Row] = {}
    for number, run in enumerate(runs):
        whole.processes |= run.processes
        whole.delays |= run.delays
        whole.idle |= run.idle
        whole.problems += run.problems
        whole.lacks(run.incomplete)
        for row in run.rows:
            _add(
                rows.setdefault(row.name, Row(row.name, row.row_class, aside=row.aside)),
                row,
                number,
            )
    for row in rows.values():
        if row.samples:
            row.skipped = ""  # one run left it out, another did not
    whole.rows = list(rows.values())
    return whole


def _add(row: Row, more: Row, number: int) -> None:
    for mode, samples in more.samples.items():
        row.samples.setdefault(mode, []).extend(
            replace(each, round=each.round + number * _ROUNDS_APART) for each in samples
        )
    for mode, result in more.results.items():
        row.results.setdefault(mode, result)
    row.different |= more.different
    row.failed |= more.failed
    row.skipped = row.skipped or more.skipped
    row.note = "; ".join(each for each in (row.note, more.note) if each)
