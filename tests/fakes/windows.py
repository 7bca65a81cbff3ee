"""Windows fake: numbers instead of descriptors."""

from __future__ import annotations


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
