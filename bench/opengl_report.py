"""What the bench of OpenGL found, for programs and for people."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

NATIVE = "native"


@dataclass
class Row:
    """One piece of work: how often a second, in each round of each mode."""

    name: str
    unit: str  # frames/s, GiB/s; `us` is shown as the time of one
    scale: float = 1.0  # of a rate, to get the unit
    rates: dict[str, list[float]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    skipped: str = ""

    def value(self, mode: str) -> float:
        """The median in the row's unit."""
        rate = statistics.median(self.rates[mode])
        return 1e6 / rate if self.unit == "us" else rate * self.scale

    def spread_percent(self, mode: str) -> float:
        """From the smallest to the largest round, to the median."""
        rates = self.rates[mode]
        return 100 * (max(rates) - min(rates)) / statistics.median(rates)

    def ratio(self, mode: str) -> float:
        """To native, of each round's pair, the median. Of times for `us`, else of rates."""
        pairs = zip(self.rates[mode], self.rates[NATIVE], strict=False)
        ratios = [theirs / ours if self.unit == "us" else ours / theirs for ours, theirs in pairs]
        return statistics.median(ratios)

    @property
    def wrong(self) -> list[str]:
        """Modes whose result is not native's."""
        if NATIVE not in self.digests:
            return []
        return [mode for mode, each in self.digests.items() if each != self.digests[NATIVE]]


@dataclass
class Figures:
    """Everything that was measured."""

    environment: dict[str, Any]
    modes: list[str]
    rows: list[Row] = field(default_factory=list)
    says: dict[str, dict[str, Any]] = field(default_factory=dict)  # who renders, by mode
    skipped: dict[str, str] = field(default_factory=dict)  # modes, and why
    failed: list[str] = field(default_factory=list)

    def failures(self) -> list[str]:
        """What makes the exit code 1."""
        wrong = [
            f"{row.name}: the result of {mode} is not native's"
            for row in self.rows
            for mode in row.wrong
        ]
        return [*self.failed, *wrong]


def as_json(figures: Figures) -> dict[str, Any]:
    """All of it, for programs."""
    rows = []
    for row in figures.rows:
        done = {mode: row.value(mode) for mode in row.rates}
        compared = row.rates if NATIVE in row.rates else {}
        ratios = {mode: row.ratio(mode) for mode in compared if mode != NATIVE}
        rows.append(asdict(row) | {"median": done, "ratio_to_native": ratios})
    return asdict(figures) | {"rows": rows, "failures": figures.failures()}


def as_markdown(figures: Figures) -> str:
    """Tables for people."""
    lines = ["# OpenGL: native and through gpupool", ""]
    lines += [f"- {name}: {value}" for name, value in figures.environment.items() if value != ""]
    for mode, says in figures.says.items():
        lines.append(
            f"- {mode}: {says['renderer']}, {says['version']}, {says['extensions']} extensions"
        )
    lines += [f"- {mode} was left out: {why}" for mode, why in figures.skipped.items()]
    lines += [
        "",
        "Median of the rounds, (spread), ratio to native: of times for us, else of rates.",
    ]
    lines += ["", "| work | unit |" + "".join(f" {mode} |" for mode in figures.modes)]
    lines.append("|---|---|" + "---|" * len(figures.modes))
    for row in figures.rows:
        cells = "".join(f" {_cell(row, mode)} |" for mode in figures.modes)
        lines.append(f"| {row.name} | {row.unit} |{cells}")
    lines += ["", *(f"- {row.name}: {row.skipped}" for row in figures.rows if row.skipped)]
    lines += [f"- FAILED: {line}" for line in figures.failures()]
    return "\n".join(lines)


def _cell(row: Row, mode: str) -> str:
    if not row.rates.get(mode):
        return "-"
    text = f"{row.value(mode):.4g} ({row.spread_percent(mode):.0f} %)"
    if mode != NATIVE and row.rates.get(NATIVE):
        text += f" **{row.ratio(mode):.2f}**"
    return text + (" WRONG" if mode in row.wrong else "")
