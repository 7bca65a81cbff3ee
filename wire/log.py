"""Structured log lines on stderr: `level=info msg="session started" session=3 ...`, or JSON.

Fields come through `extra=fields({...})`. Everything that a client chose (its program's name, its
texts) is escaped, so no client can forge a line. With journald behind stderr each line carries its
priority (sd-daemon(3), `<6>`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,\-]+")


def fields(content: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """What to give as `extra`.

    Under one name, since logging refuses names of its own, like `name`.
    """
    return {"fields": content}


def escaped(value: object) -> str:
    """One word, or a quoted string without control characters."""
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return json.dumps(text)  # ASCII only, control characters as \\uXXXX


class LineFormatter(logging.Formatter):
    """One record, one line."""

    def __init__(self, *, as_json: bool, priorities: bool) -> None:
        super().__init__()
        self._as_json = as_json
        self._priorities = priorities

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        content: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["trace"] = self.formatException(record.exc_info)
        if self._as_json:
            line = json.dumps(content, default=str)
        else:
            line = " ".join(f"{key}={escaped(value)}" for key, value in content.items())
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{line}" if self._priorities else line


def stderr_is_journal(environment: Mapping[str, str] = os.environ) -> bool:
    """True when systemd connected stderr to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    facts = os.fstat(sys.stderr.fileno())
    return environment.get("JOURNAL_STREAM", "") == f"{facts.st_dev}:{facts.st_ino}"


def wants_priorities(priorities: str) -> bool:
    """What `auto`, `yes` or `no` means here."""
    return priorities == "yes" or (priorities == "auto" and stderr_is_journal())


def set_up(logger_name: str, level: str, line_format: str, priorities: str) -> None:
    """Sends everything of a logger to stderr. `priorities` is auto, yes or no."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        LineFormatter(as_json=line_format == "json", priorities=wants_priorities(priorities))
    )
    logger = logging.getLogger(logger_name)
    logger.handlers[:] = [handler]
    logger.setLevel(LEVELS[level])
    logger.propagate = False


class RateLimit:
    """Lets `burst` lines of one kind through every `period_s`; then says how many it held back."""

    def __init__(self, burst: int = 20, period_s: float = 10.0) -> None:
        self._burst = burst
        self._period_s = period_s
        self._start_s = float("-inf")
        self._count = 0

    def admit(self, now_s: float) -> tuple[bool, int]:
        """Whether to write this line, and how many of the previous period were left out."""
        left_out = 0
        if now_s - self._start_s >= self._period_s:
            left_out = max(0, self._count - self._burst)
            self._start_s, self._count = now_s, 0
        self._count += 1
        return self._count <= self._burst, left_out
