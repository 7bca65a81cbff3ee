"""What the bench of shares found, for programs and for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Row:
    """One achieved share, in percent of the GPU."""

    what: str
    quota: float
    work: float  # of what it does alone
    low: float  # what is allowed
    high: float
    neighbour: float = 0.0
    clock: float = 1.0  # the card's, to what it was when the client was alone

    @property
    def achieved(self) -> float:
        """Of the card's time: a card at its power limit runs faster while others are gentler."""
        return self.work / self.clock

    @property
    def kept(self) -> bool:
        """Whether it is within what is allowed."""
        return self.low <= self.achieved <= self.high


@dataclass
class Figures:
    """Everything that was measured."""

    rows: list[Row] = field(default_factory=list)
    others: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what could not be measured
    remarks: list[str] = field(default_factory=list)  # what makes figures doubtful


def as_json(figures: Figures) -> dict[str, Any]:
    """All of it, for programs."""
    rows = [asdict(row) | {"achieved": row.achieved, "kept": row.kept} for row in figures.rows]
    return asdict(figures) | {"rows": rows}


def as_markdown(figures: Figures) -> str:
    """Tables for people."""
    lines = ["| what | quota % | time % | error | allowed | neighbour % | work % | clock | |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in figures.rows:
        cells = (
            *(row.what, f"{row.quota:g}", f"{row.achieved:.2f}"),
            *(f"{row.achieved - row.quota:+.2f}", f"{row.low:g} to {row.high:g}"),
            *(f"{row.neighbour:.2f}" if row.neighbour else "", f"{row.work:.2f}"),
            *(f"{row.clock:.2f}", "kept" if row.kept else "**NOT**"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| what | |", "|---|---|"]
    lines += [f"| {name} | {value:.1f} |" for name, value in figures.others.items()]
    return "\n".join([*lines, "", *figures.remarks, *figures.notes])
