"""Further connections of sessions, held until the Hello that names them.

A lane comes before its session's Hello, or a moment after it, with the same nonce, through the same
door and from the same peer. Its token has been checked. Invariant: every connection here is closed
when it has been held for `hold_s`, unless it has been handed out; their number is bounded, in all
and for each peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from dataclasses import dataclass, field

from gpupool.hostd.core.admission import Refusal
from gpupool.wire.hello import MAX_LANES, LaneHello, WelcomeStatus

_MOST = 1024
_MOST_OF_A_PEER = 256  # enough for 64 programs that start at one time


@dataclass
class _Group:
    """The lanes of one session to be."""

    lanes: dict[int, socket.socket] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    expiry: asyncio.TimerHandle | None = None


class PendingLanes:
    """Connections that wait for their session. `owner` is who a peer is and its door."""

    def __init__(
        self, hold_s: float, most: int = _MOST, most_of_a_peer: int = _MOST_OF_A_PEER
    ) -> None:
        self._hold_s = hold_s
        self._most = most
        self._most_of_a_peer = most_of_a_peer
        self._groups: dict[tuple[str, bytes], _Group] = {}
        self._held: Counter[str] = Counter()  # by owner

    @property
    def held(self) -> int:
        """Connections that wait."""
        return self._held.total()

    def add(self, lane: LaneHello, owner: str, connection: socket.socket) -> Refusal | None:
        """Takes the connection over, or says why not."""
        key = (owner, lane.nonce)
        if self.held >= self._most or self._held[owner] >= self._most_of_a_peer:
            return Refusal(
                WelcomeStatus.LIMIT, "too many further connections wait for their session"
            )
        known = self._groups.get(key)
        if lane.index >= MAX_LANES or (known is not None and lane.index in known.lanes):
            return Refusal(
                WelcomeStatus.BAD_REQUEST, f"further connection {lane.index} came twice or too far"
            )
        group = self._group(key)
        group.lanes[lane.index] = connection
        self._held[owner] += 1
        group.news.set()
        return None

    async def collect(
        self, nonce: bytes, owner: str, count: int
    ) -> tuple[socket.socket, ...] | Refusal:
        """The first `count` lanes of a session, which the caller then owns; waits for those that
        are still on their way.
        """
        key = (owner, nonce)
        group = self._group(key)
        if group.expiry is not None:
            group.expiry.cancel()
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_complete(group, count), self._hold_s)
            came = sum(index in group.lanes for index in range(count))
            if came < count:
                return Refusal(
                    WelcomeStatus.BAD_REQUEST,
                    f"only {came} of {count} further connections came within {self._hold_s:g} s; "
                    "GPUPOOL_TCP_CONNECTIONS=1 does without them",
                )
            self._held[owner] -= count
            return tuple(group.lanes.pop(index) for index in range(count))
        finally:
            self._drop(key)

    def discard(self, nonce: bytes, owner: str) -> None:
        """Closes the lanes of a session that will not be."""
        self._drop((owner, nonce))

    def close(self) -> None:
        """Closes all."""
        for key in tuple(self._groups):
            self._drop(key)

    def _group(self, key: tuple[str, bytes]) -> _Group:
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group()
            loop = asyncio.get_running_loop()
            group.expiry = loop.call_later(self._hold_s, self._drop, key)
        return group

    def _drop(self, key: tuple[str, bytes]) -> None:
        group = self._groups.pop(key, None)
        if group is None:
            return
        if group.expiry is not None:
            group.expiry.cancel()
        for connection in group.lanes.values():
            connection.close()
        owner = key[0]
        self._held[owner] -= len(group.lanes)
        if not self._held[owner]:
            del self._held[owner]


async def _complete(group: _Group, count: int) -> None:
    """Returns once the first `count` are there."""
    while not all(index in group.lanes for index in range(count)):
        group.news.clear()
        await group.news.wait()
