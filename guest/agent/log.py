"""Lines on stderr; with a priority for the journal where stderr is the journal."""

from __future__ import annotations

import os
import sys

_ERROR, _WARNING, _INFO = 3, 4, 6  # of syslog(3), which sd-daemon(3) takes as <N>


def _is_journal() -> bool:
    """systemd says which file the journal is: JOURNAL_STREAM of systemd.exec(5)."""
    facts = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"


class Log:
    """Says each trouble once, until there is another or it has gone."""

    def __init__(self) -> None:
        self._prefix = _is_journal()
        self._trouble = ""

    def info(self, text: str) -> None:
        """What has been done."""
        self._write(_INFO, text)

    def error(self, text: str) -> None:
        """What ends the agent."""
        self._write(_ERROR, text)

    def trouble(self, text: str) -> None:
        """What is tried again."""
        if text != self._trouble:
            self._write(_WARNING, text)
        self._trouble = text

    def well(self) -> None:
        """The trouble has gone."""
        if self._trouble:
            self.info("works again")
        self._trouble = ""

    def _write(self, priority: int, text: str) -> None:
        one_line = text.replace("\n", " ")
        head = f"<{priority}>" if self._prefix else "gpupool-guest-agent: "
        print(head + one_line, file=sys.stderr, flush=True)
