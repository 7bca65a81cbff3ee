"""Clock fake: stands still until the test moves it."""

from __future__ import annotations


class FakeClock:
    """Implements `ports.Clock`."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic_s(self) -> float:
        """Where the test put it."""
        return self.now_s

    def utc_text(self) -> str:
        """Always the same day."""
        return "2026-01-02T03:04:05Z"
