"""What the bench of shares found, for programs and for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

_SAME_CLOCK = 0.03


@dataclass
class Row:
    """One achieved share, in percent of the GPU."""

    what: str
    quota: float
    achieved: float  # of the work that it does alone
    low: float  # what is allowed
    high: float
    neighbour: float = 0.0
    clock: float = 1.0  # the card's, to what it was when the client was alone
    charged: float = 0.0  # of the time, by the arbiter's account

    @property
    def verdict(self) -> str:
        """Whether it is within what is allowed.

        A card at its power limit runs faster when others do lighter work in between. Then work says
        nothing of a share of time, and what the arbiter has charged is looked at instead.
        """
        by_account = abs(self.clock - 1) > _SAME_CLOCK
        found = self.charged if by_account else self.achieved
        if not self.low <= found <= self.high:
            return "**NOT**"
        return "kept, by account" if by_account else "kept"


@dataclass
class Figures:
    """Everything that was measured."""

    rows: list[Row] = field(default_factory=list)
    others: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what could not be measured
    remarks: list[str] = field(default_factory=list)  # what makes figures doubtful


def as_json(figures: Figures) -> dict[str, Any]:
    """All of it, for programs."""
    rows = [asdict(row) | {"verdict": row.verdict} for row in figures.rows]
    return asdict(figures) | {"rows": rows}


def as_markdown(figures: Figures) -> str:
    """Tables for people."""
    lines = [
        "| what | quota % | achieved % | error | allowed | neighbour % | clock | charged % | |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in figures.rows:
        cells = (
            *(row.what, f"{row.quota:g}", f"{row.achieved:.2f}"),
            *(f"{row.achieved - row.quota:+.2f}", f"{row.low:g} to {row.high:g}"),
            *(f"{row.neighbour:.2f}" if row.neighbour else "", f"{row.clock:.2f}"),
            *(f"{row.charged:.2f}" if row.charged else "", row.verdict),
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| what | |", "|---|---|"]
    lines += [f"| {name} | {value:.1f} |" for name, value in figures.others.items()]
    return "\n".join([*lines, "", *figures.remarks, *figures.notes])
