"""A process for each GPU on which somebody has a share: says whose turn it is (hostd/arbiter).

It outlives hostd and is found again by `gpus/UUID/arbiter.pid`, which it holds locked while it
lives; it ends by itself when no session has been listed for a while. One that dies is started
again, for as long as somebody has a share: until then the workers go on without leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from gpupool.hostd.adapters.worker_process import cleaned_environment
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

_EXIT_IDLE = 0
_EXIT_ANOTHER = 10  # hostd/arbiter/main.cpp
_SHORT_LIFE_S = 5.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 30.0


class ArbiterProcesses:
    """Keeps the arbiters that are needed.

    Must be used from the thread of the running event loop.
    """

    def __init__(
        self,
        program: Path | None,
        state_dir: Path,
        needed: Callable[[str], bool],
        *,
        seccomp: bool,
        log_words: list[str],
    ) -> None:
        """`needed`: whether a session on the GPU with that UUID has a share."""
        self._program = program
        self._folder = state_dir / "gpus"
        self._needed = needed
        self._words = ["--sandbox-calls", "yes" if seccomp else "no", *log_words]
        self._watched: dict[str, int] = {}  # GPU: pid
        self._released: dict[str, int] = {}  # GPU: descriptor of one that was told to end
        self._delays_s: dict[str, float] = {}
        self._stopped = False

    def look(self, gpu: str) -> None:
        """To be called when the GPU's quota page has changed."""
        if self._stopped or gpu in self._watched or not self._needed(gpu):
            return
        if not self._find(gpu):
            self._start(gpu)

    def look_at_all(self) -> None:
        """After a restart: finds those that are there, starts those that are missing."""
        for folder in sorted(self._folder.glob("*/")):
            self.look(folder.name)

    def pid(self, gpu: str) -> int:
        """Of the GPU's arbiter; 0 when there is none that we know."""
        return self._watched.get(gpu, 0)

    def release(self, gpu: str) -> bool:
        """Ends the one of a GPU that leaves the pool. False: it is still there, ask again."""
        if gpu not in self._watched and not self._find(gpu):
            return True
        if gpu not in self._released and not self._needed(gpu):
            with contextlib.suppress(ProcessLookupError):  # then its end is about to be told
                self._released[gpu] = os.pidfd_open(self._watched[gpu])
                signal.pidfd_send_signal(self._released[gpu], signal.SIGTERM)
        return False

    def stop(self) -> None:
        """No more are started; those that are there go on."""
        self._stopped = True

    def _find(self, gpu: str) -> bool:
        """Watches the one of an earlier hostd."""
        try:
            fd = os.open(self._folder / gpu / "arbiter.pid", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False  # nobody has it; closing lets it go again
        except BlockingIOError:
            with contextlib.suppress(ValueError, OSError):
                return self._watch(gpu, int(os.pread(fd, 32, 0)), None)
            return False
        finally:
            os.close(fd)

    def _start(self, gpu: str) -> None:
        if self._program is None:
            log.error(
                "compute shares are not kept: gpupool-arbiter is not built or not installed",
                extra=fields({"gpu": gpu}),
            )
            return
        try:
            child = subprocess.Popen(  # noqa: S603 (our own program)
                [str(self._program), "--folder", str(self._folder / gpu), *self._words],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                env=cleaned_environment(os.environ),
                cwd="/",
                start_new_session=True,
            )
            self._watch(gpu, child.pid, child)
        except OSError as error:
            log.error("arbiter not started", extra=fields({"gpu": gpu, "error": error.strerror}))
            self._later(gpu)

    def _watch(self, gpu: str, pid: int, child: subprocess.Popen[bytes] | None) -> bool:
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(pid)
        since_s = loop.time()

        def gone() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            del self._watched[gpu]
            exit_code = child.wait() if child is not None else None  # dead already: does not wait
            self._ended(gpu, exit_code, loop.time() - since_s)

        self._watched[gpu] = pid
        loop.add_reader(pidfd, gone)
        return True

    def _ended(self, gpu: str, exit_code: int | None, lived_s: float) -> None:
        if lived_s >= _SHORT_LIFE_S:
            self._delays_s.pop(gpu, None)
        told_fd = self._released.pop(gpu, None)
        if told_fd is not None:
            os.close(told_fd)
        elif exit_code not in (_EXIT_IDLE, _EXIT_ANOTHER):
            how = {"gpu": gpu, "exit_code": exit_code, "needed": self._needed(gpu)}
            log.warning("arbiter ended", extra=fields(how))
        self._later(gpu)

    def _later(self, gpu: str) -> None:
        delay_s = self._delays_s.get(gpu, _FIRST_DELAY_S)
        self._delays_s[gpu] = min(4 * delay_s, _LONGEST_DELAY_S)
        asyncio.get_running_loop().call_later(delay_s, self.look, gpu)
