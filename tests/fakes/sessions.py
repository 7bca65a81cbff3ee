"""SessionStore fake: records in memory, with a switch that makes writing fail."""

from __future__ import annotations

from gpupool.hostd.core.ports import Counters, DeviceUsage, PortError
from gpupool.hostd.core.session import Session


class FakeSessions:
    """Implements `ports.SessionStore`."""

    def __init__(self) -> None:
        self.records: dict[int, Session] = {}
        self.history: list[Session] = []
        self.fail_save_after: int | None = None
        self.open_usages: set[int] = set()
        self.usages: dict[int, tuple[DeviceUsage, ...]] = {}
        self.counted: dict[int, Counters] = {}
        self._last = 0

    def load(self) -> list[Session]:
        """By id."""
        return [self.records[key] for key in sorted(self.records)]

    def save(self, session: Session) -> None:
        """Keeps it; fails after as many saves as the test said."""
        if self.fail_save_after is not None and len(self.history) >= self.fail_save_after:
            raise PortError("no space left on device")
        self.records[session.id] = session
        self.history.append(session)

    def remove(self, session_id: int) -> None:
        """Forgets."""
        self.records.pop(session_id, None)
        self.usages.pop(session_id, None)
        self.counted.pop(session_id, None)

    def create_usage(self, session_id: int) -> int:
        """A number instead of a descriptor."""
        self.usages.setdefault(session_id, ())
        self.open_usages.add(8000 + session_id)
        return 8000 + session_id

    def close_usage(self, fd: int) -> None:
        """Raises KeyError for a second close."""
        self.open_usages.remove(fd)

    def usage(self, session_id: int) -> tuple[DeviceUsage, ...]:
        """What the test has put there."""
        return self.usages.get(session_id, ())

    def counters(self, session_id: int) -> Counters:
        """What the test has put there."""
        return self.counted.get(session_id, Counters())

    def next_id(self) -> int:
        """1, 2, 3"""
        self._last += 1
        return self._last
