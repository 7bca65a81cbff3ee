"""A run as JSON and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from gpupool.bench import targets
from gpupool.bench.modes import NATIVE
from gpupool.bench.ratio import Ratio, geometric_mean, half_spread_percent
from gpupool.bench.results import Row, Run, Sample
from gpupool.bench.workloads.base import CLASSES

FORMAT = 1  # of the JSON; to be raised when a field changes its meaning


def as_json(run: Run) -> dict[str, Any]:
    """Every sample, and everything that is derived from them."""
    ratios = run.ratios()
    return {
        "format": FORMAT,
        "environment": run.environment,
        "processes": run.processes,
        "delays": {mode: asdict(each) for mode, each in run.delays.items()},
        "modes": run.modes,
        "rows": [_row(row, run.modes) for row in run.rows],
        "geometric_means": {
            mode: {name: mean.as_dict() for name, mean in _means(run, mode)} for mode in ratios
        },
        "targets": [
            {**asdict(each.target), "state": each.state, "figures": each.shown}
            for each in _verdicts(run)
        ],
        "idle": run.idle,
        "problems": run.problems,
        "failures": run.failures(),
        "incomplete": run.incomplete,
    }


def _row(row: Row, modes: list[str]) -> dict[str, Any]:
    summaries = {}
    for mode in modes:
        samples = row.samples.get(mode)
        if not samples:
            continue
        one = row.ratio(mode)
        times = [each.each_s for each in samples]
        summaries[mode] = {
            "median_s": statistics.median(times),
            "half_spread_percent": half_spread_percent(times),
            "issue_s": _median(samples, lambda each: each.issue_s),
            "client_cpu_s": _median(samples, lambda each: each.client_cpu_s),
            "worker_cpu_s": _median(samples, lambda each: each.worker_cpu_s),
            "to_native": one.as_dict() if one and mode != NATIVE else None,
            "counts": _counts(samples),
            "samples": [asdict(each) for each in samples],
        }
    return {
        "name": row.name,
        "class": row.row_class,
        "skipped": row.skipped,
        "note": row.note,
        "aside": row.aside,
        "modes": summaries,
        "results": {mode: asdict(each) for mode, each in row.results.items()},
        "different": row.different,
        "failed": row.failed,
    }


def _median(samples: Sequence[Sample], pick: Callable[[Sample], float | None]) -> float | None:
    """Of one operation."""
    found = [value / each.operations for each in samples if (value := pick(each)) is not None]
    return statistics.median(found) if found else None


def _counts(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """What the guest counted in all rounds, for one operation."""
    counted = [each for each in samples if each.counts is not None]
    operations = sum(each.operations for each in counted)
    if not operations:
        return None
    sums: dict[str, Any] = {}
    for each in counted:
        _add(sums, each.counts or {}, operations)
    return sums


def _add(sums: dict[str, Any], counts: dict[str, Any], operations: int) -> None:
    for name, value in counts.items():
        if isinstance(value, dict):
            _add(sums.setdefault(name, {}), value, operations)
        else:
            sums[name] = sums.get(name, 0.0) + value / operations


def _means(run: Run, mode: str) -> list[tuple[str, Ratio]]:
    """The geometric mean over all rows, and over those of each class."""
    ratios = run.ratios().get(mode, {})
    classes = {row.name: row.row_class for row in run.rows}
    groups = {"all": list(ratios.values())}
    for kind in CLASSES:
        groups[kind] = [each for name, each in ratios.items() if classes[name] == kind]
    found = [(name, geometric_mean(group)) for name, group in groups.items()]
    return [(name, mean) for name, mean in found if mean is not None]


def _verdicts(run: Run) -> list[targets.Verdict]:
    idle = {
        mode: (each["client_cpu_s"] + each["worker_cpu_s"]) / each["seconds"] * 100
        for mode, each in run.idle.items()
    }
    verdicts = targets.judge(run.ratios(), {row.name: row.row_class for row in run.rows}, idle)
    return [each for each in verdicts if each.target.mode in run.modes]


def duration(seconds: float | None) -> str:
    """With three digits and a unit."""
    if seconds is None:
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _shown(one: Ratio) -> str:
    return f"**{one.median:.2f}** [{one.low:.2f}, {one.high:.2f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def as_markdown(run: Run) -> str:
    """The tables that people read."""
    parts = ["# Native and forwarded", "", *_head(run), *_targets(run), *_times(run)]
    parts += [*_class_means(run), *_costs(run), *_idle(run)]
    if failures := run.failures():
        parts += ["## Failures", "", *(f"- {each}" for each in failures), ""]
    return "\n".join(parts)


def _head(run: Run) -> list[str]:
    lines = [f"- {name}: {value}" for name, value in run.environment.items() if value != ""]
    native = next(iter(run.processes.values()), {})
    told = {name: native[name] for name in sorted(native) if name not in ("pid", "libcuda")}
    lines += [f"- {name}: {value}" for name, value in told.items()]
    lines += [
        f"- {mode}: a round trip takes {each.added_us:.1f} us more (asked: {each.wanted_us}); "
        f"one connection carries {each.bandwidth_gb_s:.2f} GB/s (direct: {each.direct_gb_s:.2f})"
        for mode, each in run.delays.items()
    ]
    if run.incomplete:
        lines.append(f"- **incomplete: {run.incomplete}**")
    return [*lines, ""]


def _targets(run: Run) -> list[str]:
    rows = [
        (each.target.what, each.target.mode, f"<= {each.target.limit:g}", each.state, each.shown)
        for each in _verdicts(run)
    ]
    header = ("target", "mode", "wanted", "", "figures: median [95 % interval]")
    return ["## Targets", "", *_table(header, rows)]


def _times(run: Run) -> list[str]:
    others = [mode for mode in run.modes if mode != NATIVE]
    rows = []
    for row in run.rows:
        if row.skipped:
            rows.append([row.name, row.row_class, f"skipped: {row.skipped}", *[""] * len(others)])
            continue
        cells = [row.name, row.row_class, _time(row, NATIVE)]
        for mode in others:
            one = row.ratio(mode)
            cells.append(_time(row, mode) + (f", {_shown(one)}" if one else ""))
        rows.append(cells)
    header = ("workload", "class", NATIVE, *(f"{mode}, to native" for mode in others))
    text = (
        "Medians of one operation, half the distance of the quartiles, ratio and its 95 % interval."
    )
    return ["## Times", "", text, "", *_table(header, rows)]


def _time(row: Row, mode: str) -> str:
    if why := row.failed.get(mode):
        return f"failed: {why[:80]}"
    if why := row.different.get(mode):
        return f"WRONG RESULT: {why[:80]}"
    samples = row.samples.get(mode)
    if not samples:
        return "-"
    times = [each.each_s for each in samples]
    return f"{duration(statistics.median(times))} ±{half_spread_percent(times):.0f}%"


def _class_means(run: Run) -> list[str]:
    modes = list(run.ratios())
    by_mode = {mode: dict(_means(run, mode)) for mode in modes}
    names = [name for name in ("all", *CLASSES) if any(name in by_mode[mode] for mode in modes)]
    rows = [
        [name, *(_shown(by_mode[mode][name]) if name in by_mode[mode] else "-" for mode in modes)]
        for name in names
    ]
    return ["## Geometric means of the ratios", "", *_table(("rows", *modes), rows)]


def _costs(run: Run) -> list[str]:
    rows = []
    for row in run.rows:
        for mode in run.modes:
            samples = row.samples.get(mode)
            if not samples:
                continue
            counts = _counts(samples) or {}
            rows.append(
                [
                    *(row.name, mode),
                    duration(_median(samples, lambda each: each.issue_s)),
                    duration(_median(samples, lambda each: each.client_cpu_s)),
                    duration(_median(samples, lambda each: each.worker_cpu_s)),
                    *_messages(counts),
                ]
            )
    header = ("workload", "mode", "issue", "client CPU", "worker CPU")
    columns = ("messages", "bytes", "that waited")
    text = "For one operation. Issue: until the program's own thread is free again."
    return ["## What an operation costs", "", text, "", *_table((*header, *columns), rows)]


def _messages(counts: dict[str, Any]) -> list[str]:
    """Messages, bytes and waiting functions, from what the guest runtime counts."""
    waits = counts.get("waits", {})
    named = sorted(waits.items(), key=lambda item: -item[1]) if isinstance(waits, dict) else []
    sent = counts.get("messages")
    moved = [value for name, value in counts.items() if name.startswith("bytes")]
    return [
        f"{sent:.3g}" if sent is not None else "-",
        f"{sum(moved):.4g}" if moved else "-",
        ", ".join(f"{name} {count:.2g}" for name, count in named[:4]) or "-",
    ]


def _idle(run: Run) -> list[str]:
    if not run.idle:
        return []
    rows = [
        [
            mode,
            f"{each['client_cpu_s'] * 1e3:.2f} ms",
            f"{each['worker_cpu_s'] * 1e3:.2f} ms",
            f"{each['seconds']:g} s",
        ]
        for mode, each in run.idle.items()
    ]
    return ["## Idle", "", *_table(("mode", "client CPU", "worker CPU", "in"), rows)]
