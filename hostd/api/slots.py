"""How many clients may be in the middle of something expensive, in all and from one place.

Those beyond it wait in turn; one place that takes all of its own leaves the others theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from weakref import WeakValueDictionary

_MOST = 96  # processes for handshakes: each takes some 5 MiB
_MOST_OF_A_PEER = 32


class Slot:
    """One place, to be given back once; later times do nothing."""

    def __init__(self, *give_back: Callable[[], None]) -> None:
        self._give_back = give_back

    def release(self) -> None:
        """Gives it back."""
        give_back, self._give_back = self._give_back, ()
        for one in give_back:
            one()


class Slots:
    """Places for those who wait to be let in."""

    def __init__(self, most: int = _MOST, most_of_a_peer: int = _MOST_OF_A_PEER) -> None:
        self._all = asyncio.Semaphore(most)
        self._most_of_a_peer = most_of_a_peer
        # Kept alive by those who wait and by slots.
        self._peers: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def take(self, peer: str) -> Slot:
        """Waits for a place."""
        own = self._peers.get(peer)
        if own is None:
            own = self._peers[peer] = asyncio.Semaphore(self._most_of_a_peer)
        await own.acquire()
        try:
            await self._all.acquire()
        except BaseException:
            own.release()
            raise
        return Slot(own.release, self._all.release)
