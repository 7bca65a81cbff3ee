"""Clock fake: stands still until the test moves it."""

from __future__ import annotations

from collections.abc import Callable


class FakeClock:
    """Implements `ports.Clock`."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.utc = "2026-01-02T03:04:05Z"
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def monotonic_s(self) -> float:
        """Where the test put it."""
        return self.now_s

    def utc_text(self) -> str:
        """The same until the test says otherwise."""
        return self.utc

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Waits for `pass_time`."""
        self.waiting.append((self.now_s + delay_s, action))

    def pass_time(self, seconds: float) -> None:
        """Moves it, and does what is due."""
        self.now_s += seconds
        due = [action for at, action in self.waiting if at <= self.now_s]
        self.waiting = [entry for entry in self.waiting if entry[0] > self.now_s]
        for action in due:
            action()
