"""Clock port: the machine's clocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timezone


class SystemClock:
    """Implements `ports.Clock`."""

    def monotonic_s(self) -> float:
        """Seconds since some start; not moved by clock changes."""
        return time.monotonic()

    def utc_text(self) -> str:
        """2026-11-23T02:10:00Z"""
        return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Through the running event loop."""
        asyncio.get_running_loop().call_later(delay_s, action)
