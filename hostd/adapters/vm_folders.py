"""The files of a virtual machine: its folder, with the sockets in it, and its window.

The folder lets in hostd's user and the group that QEMU runs as; other users do not get past it.
What is made in it gets that group. The window is where libvirt's <shmem> opens it, so it is in
/dev/shm and not in the folder; the folder is made before it and goes after it, so that whoever
finds the folder knows of both.
"""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import re
import shutil
from pathlib import Path

from gpupool.hostd.core.ports import PortError
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MIB = 1 << 20
_ENDED = "ended"  # made by qemu_hooks/qemu
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where libvirt's <shmem> is, docs: formatdomain)


class VmFolders:
    """Those of one host."""

    def __init__(self, folder: Path, group: str, shared_memory: Path = SHARED_MEMORY) -> None:
        """`group`: by name; one that this machine does not have leaves all to hostd's own."""
        self._folder = folder
        self._shared_memory = shared_memory
        self._group = group
        self._gid: int | None = None  # asked for with the first VM

    def folder(self, uuid: str) -> Path:
        """Of that VM."""
        return self._folder / uuid

    def window(self, uuid: str) -> Path:
        """Of that VM."""
        return window_path(uuid, self._shared_memory)

    def gid(self) -> int:
        """Of the group; -1, which changes nothing (chown(2)), where we cannot give files to it."""
        if self._gid is None:
            self._gid = _gid(self._group)
        return self._gid

    def make(self, uuid: str, window_mib: int) -> None:
        """What is there stays as it is: a VM may have it open. Raises PortError."""
        path = self.folder(uuid)
        try:
            self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
            os.chown(path, -1, self.gid())
            path.chmod(0o2750)
            (path / _ENDED).unlink(missing_ok=True)
            if window_mib:
                self._make_window(self.window(uuid), window_mib * _MIB)
        except OSError as error:
            raise PortError(f"cannot make {error.filename or path}: {error.strerror}") from error

    def remove(self, uuid: str) -> None:
        """Raises PortError. A VM that still has the window open keeps that memory, nobody else
        finds it.
        """
        try:
            self.window(uuid).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.folder(uuid))
        except OSError as error:
            raise PortError(f"cannot remove {error.filename}: {error.strerror}") from error

    def ended(self, uuid: str) -> bool:
        """Whether libvirt's hook found no hostd to tell of its end."""
        return (self.folder(uuid) / _ENDED).exists()

    def found(self) -> list[str]:
        """UUIDs of all that have a folder."""
        return sorted(path.name for path in self._folder.glob("*/") if _UUID.fullmatch(path.name))

    def _make_window(self, path: Path, size_bytes: int) -> None:
        # Not through a link that somebody else has put into a folder that all may write.
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(path, flags)
            facts = os.fstat(fd)
            if facts.st_uid == os.geteuid() and facts.st_size == size_bytes:
                os.close(fd)
                return
            os.close(fd)
            path.unlink()  # another's, or of another size: no VM of ours has it
        except FileNotFoundError:
            pass
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.fchown(fd, -1, self.gid())
            os.fchmod(fd, 0o660)
            os.ftruncate(fd, size_bytes)
        finally:
            os.close(fd)


def window_path(uuid: str, shared_memory: Path = SHARED_MEMORY) -> Path:
    """Where libvirt's <shmem> opens the window of that VM."""
    return shared_memory / f"gpupool-{uuid}"


def _gid(group: str) -> int:
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        log.info(
            "no such group: virtual machines whose hypervisor runs as another user cannot reach "
            "their sockets",
            extra=fields({"vm.group": group}),
        )
        return -1
    return gid if os.geteuid() == 0 or gid in os.getgroups() else -1
