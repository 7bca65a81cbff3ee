"""Fakes of windows: numbers instead of descriptors."""

from __future__ import annotations

from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.window import Piece


class FakeWindows:
    """Implements `ports.Windows`."""

    def __init__(self) -> None:
        self.open: dict[int, int] = {}  # fd -> bytes
        self.made = 0

    def create(self, window_bytes: int) -> int:
        """The next number."""
        self.made += 1
        self.open[9000 + self.made] = window_bytes
        return 9000 + self.made

    def close(self, fd: int) -> None:
        """Raises KeyError for a second close."""
        del self.open[fd]


class FakeVmWindows:
    """Implements `window.VmWindows`."""

    def __init__(self) -> None:
        self.opened: dict[int, tuple[str, Piece]] = {}  # by descriptor
        self.cleared: list[tuple[str, Piece]] = []
        self.made = 0
        self.fail = ""

    def open(self, uuid: str, window_bytes: int, piece: Piece) -> int:
        """The next number, or a failure as the test asked."""
        if self.fail:
            raise PortError(self.fail)
        assert piece.offset_bytes + piece.size_bytes <= window_bytes
        self.made += 1
        self.opened[9500 + self.made] = (uuid, piece)
        return 9500 + self.made

    def close(self, fd: int) -> None:
        """Raises KeyError for a second close."""
        del self.opened[fd]

    def clear(self, uuid: str, piece: Piece) -> None:
        """Notes it, or fails as the test asked."""
        if self.fail:
            raise PortError(self.fail)
        self.cleared.append((uuid, piece))
