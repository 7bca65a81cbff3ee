"""Tables: with bold headers and colours on a terminal, plain columns everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

# Words of states, in the colours that people expect.
_STYLES = {
    "running": "green",
    "ready": "green",
    "ok": "green",
    "failed": "red",
    "fail": "red",
    "lost": "red",
    "warn": "yellow",
    "waiting": "yellow",
    "draining": "yellow",
}


def show(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints to stdout. Whoever reads a pipe gets every row on one line, without colours."""
    if not sys.stdout.isatty():
        print(render(header, rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        # Text, not markup: a program called [red] is called so.
        table.add_row(*(Text(cell, _STYLES.get(cell, "")) for cell in map(printable, row)))
    Console().print(table)


def render(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell, two spaces between."""
    cells = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def printable(cell: object) -> str:
    """Program names come from clients: a control character must not reach the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(cell))
