"""A process for each virtual machine whose vsock device we are (hostd/vsock).

It outlives hostd and is found again by `relay.pid` in the VM's folder, which it holds locked while
it lives. One that dies is started again for as long as the VM is prepared; the VM itself sees its
device again only after its next start, as QEMU 7.2 does not greet a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpupool.hostd.adapters.cgroups import Groups
from gpupool.hostd.adapters.worker_process import cleaned_environment
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

_SHORT_LIFE_S = 5.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 30.0
_LOOK_S = 0.005
_GROUP_LOOK_S, _GROUP_TRIES = 0.2, 20
END_S = 10.0  # between SIGTERM, which it minds once QEMU has gone, and SIGKILL
_DIALLED_MODE = 0o660  # hostd/vsock/main.cpp


@dataclass(slots=True)
class _Wanted:
    """A relay that should be there."""

    folder: Path
    cid: int
    domain_mib: int = 0  # memory of its VM; 0: not known
    pid: int = 0  # 0: between two lives
    delay_s: float = _FIRST_DELAY_S


class RelayProcesses:
    """Keeps the relays that are needed. Used from the thread of the running event loop."""

    def __init__(
        self,
        program: Path | None,
        words: Sequence[str],
        groups: Groups | None = None,
        end_s: float = END_S,
    ) -> None:
        """`words`: further arguments of each; `groups`: where each has one of its own."""
        self._groups = groups
        self._end_s = end_s
        self._program = program
        self._words = list(words)
        self._wanted: dict[str, _Wanted] = {}
        self._stopped = False

    def want(self, uuid: str, folder: Path, cid: int, domain_mib: int = 0) -> None:
        """It is found, or started. `domain_mib`: the VM's memory; 0: not known. Raises PortError
        where it cannot be.
        """
        if uuid in self._wanted:
            return
        if self._program is None:
            raise PortError(
                "gpupool-vsock is not built or not installed, and virtual machines need it here: "
                "load the kernel's vhost_vsock, or install gpupool again"
            )
        self._wanted[uuid] = _Wanted(folder, cid, domain_mib)
        try:
            self._look(uuid)
        except OSError as error:
            del self._wanted[uuid]
            raise PortError(f"cannot start {self._program}: {error.strerror}") from error

    def end(self, uuid: str, folder: Path) -> None:
        """It is told to end, also one that we did not know of, and killed if it does not."""
        known = self.pid(uuid)
        self._wanted.pop(uuid, None)
        pid = known or _holder(folder)
        if not pid:
            self._remove_group(uuid)
            return
        with contextlib.suppress(OSError):  # gone meanwhile
            pidfd = os.pidfd_open(pid)
            # Only now do we hold that process and no later one of the same number; one that we
            # watch keeps its number until we have looked.
            if known or _holder(folder) == pid:
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                loop = asyncio.get_running_loop()
                kill = loop.call_later(self._end_s, _kill, uuid, pidfd)
                loop.add_reader(pidfd, self._ended, uuid, pidfd, kill)
            else:
                os.close(pidfd)

    async def ready(self, uuid: str, timeout_s: float) -> None:
        """Waits until QEMU can dial it. Raises PortError."""
        wanted = self._wanted.get(uuid)
        if wanted is None:
            return
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + timeout_s
        while not _listens(wanted.folder / "vhost"):
            if loop.time() >= ends_s:
                raise PortError(
                    f"the relay of domain {uuid} did not come up within {timeout_s:g} s; hostd's "
                    "log says more"
                )
            await asyncio.sleep(_LOOK_S)

    def pid(self, uuid: str) -> int:
        """0 when there is none that we know."""
        wanted = self._wanted.get(uuid)
        return wanted.pid if wanted else 0

    def stop(self) -> None:
        """No more are started; those that are there go on."""
        self._stopped = True

    def _look(self, uuid: str) -> None:
        wanted = self._wanted.get(uuid)
        if self._stopped or wanted is None or wanted.pid:
            return
        pid, child = _holder(wanted.folder), None
        if not pid:
            # Of one that is dead: it must not look as if somebody listened.
            (wanted.folder / "vhost").unlink(missing_ok=True)
            child = subprocess.Popen(  # noqa: S603 (our own program)
                [
                    str(self._program),
                    *("--folder", str(wanted.folder), "--cid", str(wanted.cid)),
                    *self._group_words(uuid, wanted.domain_mib),
                    *self._words,
                ],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                env=cleaned_environment(os.environ),
                cwd="/",
                start_new_session=True,
            )
            pid = child.pid
        with contextlib.suppress(ProcessLookupError):
            self._watch(uuid, wanted, pid, child)
            return
        self._later(uuid, wanted, 0)

    def _group_words(self, uuid: str, domain_mib: int) -> list[str]:
        """It enters by itself, before it starts its connector."""
        group = self._groups.create_relay(uuid, domain_mib) if self._groups is not None else None
        return ["--group", str(group)] if group is not None else []

    def _remove_group(self, uuid: str, tries: int = _GROUP_TRIES) -> None:
        if self._groups is None or uuid in self._wanted:
            return
        if not self._groups.remove_relay(uuid) and tries:
            # Its connector notices its end a moment later. What stays goes when hostd starts.
            loop = asyncio.get_running_loop()
            loop.call_later(_GROUP_LOOK_S, self._remove_group, uuid, tries - 1)

    def _watch(
        self, uuid: str, wanted: _Wanted, pid: int, child: subprocess.Popen[bytes] | None
    ) -> None:
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(pid)
        since_s = loop.time()

        def gone() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            exit_code = child.wait() if child is not None else None  # dead already: does not wait
            wanted.pid = 0
            if self._wanted.get(uuid) is wanted and not self._stopped:
                log.warning("relay ended", extra=fields({"uuid": uuid, "exit_code": exit_code}))
                self._later(uuid, wanted, loop.time() - since_s)
            else:
                self._remove_group(uuid)

        wanted.pid = pid
        loop.add_reader(pidfd, gone)

    def _ended(self, uuid: str, pidfd: int, kill: asyncio.TimerHandle) -> None:
        kill.cancel()
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        self._remove_group(uuid)

    def _later(self, uuid: str, wanted: _Wanted, lived_s: float) -> None:
        if lived_s >= _SHORT_LIFE_S:
            wanted.delay_s = _FIRST_DELAY_S
        asyncio.get_running_loop().call_later(wanted.delay_s, self._again, uuid)
        wanted.delay_s = min(4 * wanted.delay_s, _LONGEST_DELAY_S)

    def _again(self, uuid: str) -> None:
        try:
            self._look(uuid)
        except OSError as error:
            log.error("relay not started", extra=fields({"uuid": uuid, "error": error.strerror}))
            wanted = self._wanted.get(uuid)
            if wanted is not None:
                self._later(uuid, wanted, 0)


def _holder(folder: Path) -> int:
    """Who holds `relay.pid` locked; 0: nobody."""
    try:
        fd = os.open(folder / "relay.pid", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return 0  # nobody has it; closing lets it go again
    except BlockingIOError:
        with contextlib.suppress(ValueError):
            return int(os.pread(fd, 32, 0))
        return 0
    finally:
        os.close(fd)


def _listens(path: Path) -> bool:
    """Whether it can be dialled: the relay gives it that mode as the last thing. Not tried, since
    the relay takes whoever comes for QEMU.
    """
    with contextlib.suppress(OSError):
        facts = path.lstat()
        return stat.S_ISSOCK(facts.st_mode) and stat.S_IMODE(facts.st_mode) == _DIALLED_MODE
    return False


def _kill(uuid: str, pidfd: int) -> None:
    log.error("relay does not end, killed", extra=fields({"uuid": uuid}))
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
