"""Clients that wait for room on a GPU: by priority, and among equals first come, first served.

Whoever needs room goes behind all who wait for some, whatever they need: so nobody waits for ever
because smaller ones slip past. Who needs none (a vGPU that is there already) does not wait.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.hostd.core.vgpu import DEFAULT_PRIORITY, Wanted

_MOST = 256
_MOST_OF_ONE = 64  # owner: the others keep places


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """One client that waits."""

    wanted: Wanted
    program: str
    pid: int
    since_s: float
    priority: int = DEFAULT_PRIORITY


class WaitingLine:
    """All who wait on this host."""

    def __init__(self) -> None:
        self._line: list[Ticket] = []

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """In their order."""
        return tuple(self._line)

    def enter(self, ticket: Ticket) -> bool:
        """Takes the last place of its priority. False when too many wait already."""
        own = sum(one.wanted.owner == ticket.wanted.owner for one in self._line)
        if len(self._line) >= _MOST or own >= _MOST_OF_ONE:
            return False
        place = sum(one.priority >= ticket.priority for one in self._line)
        self._line.insert(place, ticket)
        return True

    def leave(self, ticket: Ticket) -> None:
        """The others move up."""
        self._line.remove(ticket)

    def before(self, ticket: Ticket | None) -> int:
        """How many come first; before somebody without a ticket, everybody does."""
        return len(self._line) if ticket is None else self._line.index(ticket)
