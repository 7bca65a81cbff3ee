"""Which nodes have been silent for too long, without trusting any clock.

Each node's beats are counted in the database. A replica looks at the counts every few seconds and
adds up, for each count that has not moved, how long it has watched it stand still: on its own
monotonic clock, and never more between two looks than `most_step_s`. So these are no silence of a
node: a wall clock that jumps, a database that was away, a replica that was stopped and goes on, or
one that has just started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LEASE_S = 30.0


@dataclass(slots=True)
class _Watched:
    beat: int
    silent_s: float


class Leases:
    """What one replica has seen of the nodes' beats."""

    def __init__(self, lease_s: float = LEASE_S, most_step_s: float = 5.0) -> None:
        self._lease_s = lease_s
        self._most_step_s = most_step_s
        self._watched: dict[str, _Watched] = {}
        self._looked_s: float | None = None

    def look(self, beats: Mapping[str, int], monotonic_s: float) -> list[tuple[str, int]]:
        """Takes the counts of all nodes that are ready; (id, count) of those to mark as lost."""
        step_s = 0.0
        if self._looked_s is not None:
            step_s = min(max(monotonic_s - self._looked_s, 0.0), self._most_step_s)
        self._looked_s = monotonic_s
        watched: dict[str, _Watched] = {}
        for node_id, beat in beats.items():
            old = self._watched.get(node_id)
            same = old is not None and old.beat == beat
            watched[node_id] = _Watched(beat, old.silent_s + step_s if old and same else 0.0)
        self._watched = watched
        return [
            (node_id, each.beat)
            for node_id, each in watched.items()
            if each.silent_s >= self._lease_s
        ]
