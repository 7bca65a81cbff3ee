"""Plain text tables for terminals."""

from __future__ import annotations

from collections.abc import Sequence


def render(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell, two spaces between."""
    cells = [list(header), *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _printable(cell: object) -> str:
    """Program names come from clients: a control character must not reach the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(cell))
