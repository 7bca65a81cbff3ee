"""Processes of hypervisors: which virtual machine one is, and when it ends (pidfd_open(2))."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path

from gpupool.hostd.adapters.worker_process import start_ticks
from gpupool.hostd.core.kata_hypervisor import Hypervisor, UnknownHypervisorError, read
from gpupool.hostd.core.ports import PortError


def find(pid: int, proc: Path = Path("/proc")) -> Hypervisor:
    """Which virtual machine that process, or the process of that thread, is. Raises PortError."""
    what = f"process {pid}, which Kata names as the sandbox's hypervisor"
    try:
        status = dict(
            line.split(":\t", 1)
            for line in (proc / str(pid) / "status").read_text("utf-8").splitlines()
            if ":\t" in line
        )
        pid = int(status["Tgid"])
        user = int(status["Uid"].split()[1])
        ticks = start_ticks(pid)
        raw = (proc / str(pid) / "cmdline").read_bytes()
    except (OSError, ValueError, KeyError) as error:
        raise PortError(f"{what}: {getattr(error, 'strerror', None) or error}") from error
    if ticks is None:
        raise PortError(f"{what} has ended")
    try:
        line = read(raw.decode(errors="replace").split("\0")[:-1])
    except UnknownHypervisorError as error:
        raise PortError(f"{what}: {error}") from error
    if line.cid:
        return Hypervisor(line.kind, pid, ticks, line.cid)
    # What we make there nobody may exchange for a link meanwhile, and the process must get at it.
    if user != os.geteuid():
        raise PortError(f"{what} runs as user {user}; rootless sandboxes cannot have vGPUs")
    socket = next((one for one in line.sockets if _is_ours(Path(one))), "")
    if not socket:
        places = " or ".join(line.sockets)
        raise PortError(f"{what}: no vsock socket at {places} in a folder that is root's")
    return Hypervisor(line.kind, pid, ticks, socket=socket)


def lives(hypervisor: Hypervisor) -> bool:
    """Whether it still runs."""
    return start_ticks(hypervisor.pid) == hypervisor.start_ticks


def _is_ours(path: Path) -> bool:
    try:
        folder = path.parent.lstat()
        here = path.lstat()
    except OSError:
        return False
    ours = stat.S_ISDIR(folder.st_mode) and folder.st_uid == os.geteuid()
    others = stat.S_IWGRP | stat.S_IWOTH
    return ours and not folder.st_mode & others and stat.S_ISSOCK(here.st_mode)


class HypervisorWatch:
    """Tells once when one has ended. From the thread of the running event loop only."""

    def __init__(self, hypervisor: Hypervisor, on_gone: Callable[[], None]) -> None:
        self._on_gone = on_gone
        self._pidfd = -1
        self._handle: asyncio.Handle | None = None
        try:
            self._pidfd = os.pidfd_open(hypervisor.pid)
        except ProcessLookupError:
            pass
        except OSError as error:
            raise PortError(
                f"cannot watch hypervisor {hypervisor.pid}: {error.strerror}"
            ) from error
        loop = asyncio.get_running_loop()
        if self._pidfd < 0 or not lives(hypervisor):
            self._handle = loop.call_soon(self._gone)
            return
        loop.add_reader(self._pidfd, self._gone)

    def stop(self) -> None:
        """No more."""
        if self._handle is not None:
            self._handle.cancel()
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _gone(self) -> None:
        self.stop()
        self._on_gone()
