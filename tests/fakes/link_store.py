"""A LinkStore in memory."""

from __future__ import annotations

from gpupool.hostd.core.link import Desired
from gpupool.hostd.core.ports import PortError


class FakeLinkStore:
    """Implements `link.LinkStore`."""

    def __init__(self) -> None:
        self.kept: Desired | None = None
        self.fail = ""

    def load(self) -> Desired | None:
        """See the port."""
        return Desired.from_dict(self.kept.as_dict()) if self.kept else None

    def save(self, desired: Desired) -> None:
        """See the port."""
        if self.fail:
            raise PortError(self.fail)
        self.kept = desired
