"""Waits for a long operation and shows how far it is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace

from gpupool.cli.backend import Backend, BackendError, RefusedError
from gpupool.cli.model import Operation
from gpupool.cli.table import printable

_POLL_S = 0.5
_AWAY_S = 60.0  # how long nobody may answer


def finish(backend: Backend, operation: Operation, wait: bool) -> Operation:
    """The operation when it has ended well, or as it is now without waiting.

    Raises BackendError where it ends badly. An interrupt leaves it going on, and says so.
    """
    if not wait:
        return operation
    try:
        ended = _follow(backend, operation)
    except KeyboardInterrupt:
        print(
            f"operation {operation.id} goes on; `gpupool operation show {operation.id}` shows it, "
            f"`gpupool operation cancel {operation.id}` ends it",
            file=sys.stderr,
        )
        raise
    if ended.state != "succeeded":
        raise BackendError(
            f"operation {ended.id} ({ended.kind} of {ended.target}) {ended.state}: "
            f"{printable(ended.error or ended.progress)}"
        )
    return ended


def _follow(backend: Backend, operation: Operation) -> Operation:
    if not operation.running:
        return operation
    if sys.stderr.isatty():
        return _with_bar(backend, operation)
    told = ""

    def tell(now: Operation) -> None:
        nonlocal told
        line = f"{now.percent:3d}% {printable(now.progress)}" + (
            f" ({printable(now.error)})" if now.error else ""
        )
        if line != told:
            print(line, file=sys.stderr, flush=True)
            told = line

    return _poll(backend, operation, tell)


def _with_bar(backend: Backend, operation: Operation) -> Operation:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    # The words give way where the terminal is narrow, not the figures.
    words = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns = (
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:3.0f}%", table_column=Column(min_width=4, no_wrap=True)),
        TimeElapsedColumn(table_column=Column(min_width=7, no_wrap=True)),
        TextColumn("{task.description}", table_column=words),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, expand=True) as bar:
        task = bar.add_task(escape(printable(operation.progress)), total=100)

        def tell(now: Operation) -> None:
            text = printable(now.progress) + (f" ({printable(now.error)})" if now.error else "")
            bar.update(task, completed=now.percent, description=escape(text))

        return _poll(backend, operation, tell)


def _poll(backend: Backend, operation: Operation, tell: Callable[[Operation], None]) -> Operation:
    """Until it ends: a drain without a deadline may take days, and Ctrl-C is the way out."""
    away_since_s: float | None = None
    while operation.running:
        tell(operation)
        time.sleep(_POLL_S)
        try:
            operation = backend.operation(operation.id)
            away_since_s = None
        except RefusedError:
            raise
        except BackendError as error:
            # Operations outlive whoever performs them: a daemon that is restarted goes on.
            now_s = time.monotonic()
            away_since_s = away_since_s or now_s
            if now_s - away_since_s > _AWAY_S:
                raise
            tell(replace(operation, error=f"no answer, trying again: {error}"))
    tell(operation)
    return operation
