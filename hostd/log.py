"""hostd's log: the lines that all daemons write (wire/log.py), under its own name."""

from __future__ import annotations

from gpupool.wire import log
from gpupool.wire.log import (
    LEVELS,
    LineFormatter,
    RateLimit,
    escaped,
    fields,
    stderr_is_journal,
    wants_priorities,
)

__all__ = [
    "LEVELS",
    "LOGGER",
    "LineFormatter",
    "RateLimit",
    "escaped",
    "fields",
    "set_up",
    "stderr_is_journal",
    "wants_priorities",
]
LOGGER = "gpupool.hostd"


def set_up(level: str, line_format: str, priorities: str) -> None:
    """Sends everything of this logger to stderr. `priorities` is auto, yes or no."""
    log.set_up(LOGGER, level, line_format, priorities)
