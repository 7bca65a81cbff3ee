"""A relay of ours beside the program that `gpupool run` runs (rdma.py, opengl.py)."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TypeVar

_READY_TIMEOUT_S = 20.0
_END_TIMEOUT_S = 5.0
_Relay = TypeVar("_Relay", bound="RelayProcess")


class RelayProcess:
    """A process that says `ready` on its standard output; it ends with the `with` block.

    `said`: the words of that line, `ready` first; empty when it did not start. Then it is gone
    already: whoever makes one looks.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
        readable, writable = os.pipe()
        with os.fdopen(readable, encoding="utf-8") as output:
            # In a session of its own: what the terminal's keys end is the program.
            self._process = subprocess.Popen(  # noqa: S603 (our own program)
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=writable,
                env=None if variables is None else dict(variables),
                start_new_session=True,
            )
            os.close(writable)
            ready, _, _ = select.select([output], [], [], _READY_TIMEOUT_S)
            self.said = output.readline().split() if ready else []
        if self.said[:1] != ["ready"]:
            self.said = []
            self.end()

    def end(self) -> None:
        """It ends, within some seconds."""
        self._process.terminate()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self: _Relay) -> _Relay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
