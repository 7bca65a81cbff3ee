"""How fast a card's clock ran: a card at its power limit slows down, and the less the more of its
time goes to lighter work. Work a second then says less than it seems about a share of time.
"""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import threading
from collections.abc import Iterator

# Seldom: who asks NVML takes time from those who share the card in turn. With 20 questions a
# second a client with 25 percent did 23.7 percent of its work on an H100, with 2 a second 24.1.
_EVERY_S = 0.5


class SmClock:
    """Looks at the multiprocessors' clock of the first NVIDIA GPU while somebody asks."""

    def __init__(self, *, nvidia: bool) -> None:
        """Without `nvidia` there is no clock, and every answer is 0. Raises RuntimeError."""
        self._card = None
        if not nvidia:
            return
        ctypes.CDLL("libnvidia-ml.so.1")  # the driver's own, before pynvml looks for any
        import pynvml

        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._card = pynvml.nvmlDeviceGetHandleByIndex(0)
        except pynvml.NVMLError as error:
            raise RuntimeError(f"no clock of the GPU: {error}") from error

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[float]]:
        """A list which has the mean in MHz after the block."""
        mean: list[float] = []
        seen: list[int] = []
        done = threading.Event()

        def look() -> None:
            while self._card is not None and not done.wait(_EVERY_S):
                seen.append(self._nvml.nvmlDeviceGetClockInfo(self._card, self._nvml.NVML_CLOCK_SM))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield mean
        finally:
            done.set()
            thread.join()
            mean.append(statistics.fmean(seen) if seen else 0.0)
