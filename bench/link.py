"""The runner's end of a long-living process of one mode (the other end is bench/agent.py)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
_END_TIMEOUT_S = 20.0
_PIECE_BYTES = 1 << 20
# clock_getcpuclockid(3) as the kernel encodes it (include/linux/posix-timers_types.h): the inverted
# pid above three bits, of which 2 says "scheduler's count", of the whole process.
_CPU_CLOCK = 2


class LinkError(RuntimeError):
    """The process died, or did not answer in time; it is gone now."""


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, all its threads, to the nanosecond. 0 when it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | _CPU_CLOCK)
    except OSError:
        return 0.0


def all_cpu_s(pids: Iterable[int]) -> float:
    """Of several processes."""
    return sum(cpu_s(pid) for pid in pids)


class Link:
    """A process that runs workloads. Only one process is asked to time something at any moment."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._buffer = b""
        with log.open("ab") as errors:
            self._process = subprocess.Popen(  # noqa: S603 (our own module in the user's Python)
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environment),
                bufsize=0,
                start_new_session=True,  # an interrupt from the terminal is the runner's to handle
            )
        if self._process.stdin is None or self._process.stdout is None:
            raise LinkError("no pipes")  # Popen makes what was asked for
        self._questions, self._answers = self._process.stdin, self._process.stdout
        self.pid = self._process.pid
        self.session = 0  # in hostd, once it is known
        self.host_pids: tuple[int, ...] = ()  # the processes that work for it there

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def send(self, do: str, **words: object) -> None:
        """Asks; `receive` is to be called for every question."""
        try:
            self._questions.write(json.dumps({"do": do, **words}).encode() + b"\n")
        except OSError as error:
            self.kill()
            raise LinkError(f"the process is gone: {self.last_words()}") from error

    def receive(self, timeout_s: float) -> Answer:
        """The answer to the oldest question. Raises LinkError."""
        deadline = time.monotonic() + timeout_s
        descriptor = self._answers.fileno()
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
                self.kill()
                raise LinkError(f"no answer within {timeout_s:.0f} s: {self.last_words()}")
            piece = os.read(descriptor, _PIECE_BYTES)
            if not piece:
                self.kill()
                code = self._process.returncode
                raise LinkError(f"the process ended with {code}: {self.last_words()}")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: Answer = json.loads(line)
        return answer

    def ask(self, timeout_s: float, do: str, **words: object) -> Answer:
        """Asks and waits."""
        self.send(do, **words)
        return self.receive(timeout_s)

    def end(self) -> None:
        """Lets it leave in order, and kills it when it does not."""
        self._questions.close()
        try:
            self._process.wait(timeout=_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._answers.close()

    def kill(self) -> None:
        """Ends it and what it started, whatever it does."""
        with contextlib.suppress(ProcessLookupError):  # it was gone already
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(timeout=_END_TIMEOUT_S)

    def last_words(self) -> str:
        """The end of what it wrote on standard error."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        ours = [line for line in lines if line.startswith("gpupool: ")]  # the guest runtime's
        return " / ".join(ours[-1:] + lines[-2:])[-400:] or "it said nothing"
