"""VmWindows port: the files that libvirt's <shmem> opens.

QEMU has them mapped, and may cut them short or write to them at any time: nothing here maps one.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable
from pathlib import Path

from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.window import Piece

# From linux/falloc.h: takes the pages out, of whoever has them mapped, too; they read as zero.
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


class VmWindows:
    """Implements `core.window.VmWindows`."""

    def __init__(self, path: Callable[[str], Path]) -> None:
        """`path`: of a domain's window."""
        self._path = path
        self._fallocate = ctypes.CDLL(None, use_errno=True).fallocate

    def open(self, uuid: str, window_bytes: int, piece: Piece) -> int:
        """A descriptor with a zeroed piece."""
        path = self._path(uuid)
        try:
            fd = _open(path)
        except OSError as error:
            raise PortError(f"{path}: {error.strerror}") from error
        try:
            size = os.fstat(fd).st_size
            if size != window_bytes:
                raise PortError(f"{path}: it has {size} bytes and should have {window_bytes}")
            self._punch(path, fd, piece)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def close(self, fd: int) -> None:
        """Closes it; the worker has its own."""
        os.close(fd)

    def clear(self, uuid: str, piece: Piece) -> None:
        """Zeroes a piece."""
        path = self._path(uuid)
        try:
            fd = _open(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise PortError(f"{path}: {error.strerror}") from error
        try:
            self._punch(path, fd, piece)
        finally:
            os.close(fd)

    def _punch(self, path: Path, fd: int, piece: Piece) -> None:
        where = ctypes.c_long(piece.offset_bytes), ctypes.c_long(piece.size_bytes)
        if self._fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, *where) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise PortError(f"{path}: a piece of it cannot be cleared: {reason}")


def _open(path: Path) -> int:
    """Not through a link, and no file of somebody else's: all may write where it is."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    facts = os.fstat(fd)
    if stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid():
        return fd
    os.close(fd)
    raise OSError(1, f"it is no file of hostd's (owner {facts.st_uid})")
