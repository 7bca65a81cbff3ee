"""When a hostd that serves one user leaves: after a while in which nobody needed it."""

from __future__ import annotations

from collections.abc import Callable


class IdleRule:
    """Counts from the last moment at which a session or a `gpupool run` existed."""

    def __init__(self, timeout_s: float, now_s: float) -> None:
        self._timeout_s = timeout_s
        self._free_since_s = now_s
        self._was_busy = False

    def look(
        self, now_s: float, *, busy: bool, hold: Callable[[], bool] = lambda: True
    ) -> float | None:
        """Seconds until to look again; None: leave now.

        `hold` is asked last and makes leaving safe (nobody may be about to join); if it says no,
        wait once more.
        """
        if busy or self._was_busy:
            self._free_since_s = now_s
        self._was_busy = busy
        left_s = self._free_since_s + self._timeout_s - now_s
        if left_s > 0:
            return left_s
        if hold():
            return None
        self._free_since_s = now_s
        return self._timeout_s
