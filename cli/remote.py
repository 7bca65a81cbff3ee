"""A machine that commands are run on, as `gpupool host` needs it: ssh is one way (cli/ssh.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gpupool.cli.backend import BackendError


class RemoteError(BackendError):
    """It is not reached, or a command failed. The text says what was tried and what to do."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    error: str


class Remote(Protocol):
    """One machine, as root. Everything here raises RemoteError."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    def run(self, words: Sequence[str], given: bytes = b"", timeout_s: float = 60) -> Ended:
        """Runs a command with these bytes as its input."""
        ...


def must(remote: Remote, what: str, words: Sequence[str], timeout_s: float = 60) -> str:
    """What a command prints that has to succeed. Raises RemoteError."""
    ended = remote.run(words, timeout_s=timeout_s)
    if ended.code != 0:
        raise RemoteError(f"{remote.name}: {what}: {_last_words(ended)}")
    return ended.out


def put(remote: Remote, path: str, content: bytes, mode: str) -> None:
    """Writes a file that is never half there, nor readable by others for a moment.

    Raises RemoteError.
    """
    script = 'umask 077; cat >"$1.new" && chmod "$2" "$1.new" && mv -f "$1.new" "$1"'
    ended = remote.run(["sh", "-c", script, "sh", path, mode], content, timeout_s=600)
    if ended.code != 0:
        raise RemoteError(f"{remote.name}: cannot write {path}: {_last_words(ended)}")


def _last_words(ended: Ended) -> str:
    lines = (ended.error.strip() or ended.out.strip()).splitlines()[-3:]
    return " | ".join(lines) if lines else f"exit code {ended.code}"
