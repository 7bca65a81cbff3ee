"""Exchange fake: numbers instead of descriptors."""

from __future__ import annotations


class FakeExchange:
    """Implements `ports.Exchange`."""

    def __init__(self) -> None:
        self.tenants: dict[int, str] = {}
        self.open: set[int] = set()

    def join(self, session_id: int, tenant: str) -> int:
        """A number of its own."""
        self.tenants[session_id] = tenant
        self.open.add(8000 + session_id)
        return 8000 + session_id

    def close(self, fd: int) -> None:
        """Raises KeyError for a second close."""
        self.open.remove(fd)

    def leave(self, session_id: int) -> None:
        """A second time is no error."""
        self.tenants.pop(session_id, None)
