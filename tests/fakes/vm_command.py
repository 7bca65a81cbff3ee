"""`gpupool vm` in this process, on a libvirtd of a test."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpupool.cli.main import main
from tests.fakes.libvirtd import Libvirtd


@dataclass(frozen=True)
class Done:
    """What a command did."""

    returncode: int
    stdout: str
    stderr: str


class Command:
    """`gpupool vm` on this libvirtd, asking this hostd."""

    def __init__(self, libvirtd: Libvirtd, hostd: Path) -> None:
        self._libvirtd = libvirtd
        self._hostd = hostd

    def call(self, verb: str, *words: str) -> Done:
        """As a user does, but for the start of another Python."""
        connect = () if verb == "list" else ("--connect", self._libvirtd.uri)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["vm", verb, *words, *connect, "--admin-socket", str(self._hostd)])
        return Done(code, out.getvalue(), err.getvalue())

    def json(self, verb: str, *words: str) -> dict[str, Any]:
        """What it answers."""
        done = self.call(verb, *words, "--json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def says(self, verb: str, *words: str) -> str:
        """What it prints."""
        done = self.call(verb, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout
