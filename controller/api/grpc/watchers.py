"""Who waits for a change of what a node should have.

One question to the database a moment for all nodes of this replica, so that a change made at any
other replica arrives as soon as one made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping

from gpupool.controller.core.errors import StoreError

log = logging.getLogger("gpupool.controller.nodes")
LOOK_S = 0.25


class Watcher:
    """One stream."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.sent = -1  # generation
        self.gone = False
        self._event = asyncio.Event()

    def see(self, generation: int | None) -> None:
        """What the database says; None: there is no such node."""
        self.gone = generation is None
        if self.gone or generation != self.sent:
            self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Until there may be something new; False after that time."""
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        self._event.clear()
        return True

    def wake(self) -> None:
        """Makes wait() return."""
        self._event.set()


class Watchers:
    """Those of one replica. Used from one event loop."""

    def __init__(
        self, generations: Callable[[Collection[str]], Awaitable[Mapping[str, int]]]
    ) -> None:
        self._generations = generations
        self._watchers: set[Watcher] = set()

    def __len__(self) -> int:
        return len(self._watchers)

    @contextlib.contextmanager
    def join(self, node_id: str) -> Iterator[Watcher]:
        """Somebody waits."""
        watcher = Watcher(node_id)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def wake_all(self) -> None:
        """The server stops."""
        for watcher in self._watchers:
            watcher.wake()

    async def run(self) -> None:
        """Looks until cancelled."""
        failing = False
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._watchers:
                continue
            try:
                found = await self._generations({one.node_id for one in self._watchers})
            except StoreError as error:
                if not failing:
                    log.warning("the database does not answer; nodes go on: %s", error)
                failing = True
                continue
            failing = False
            for watcher in tuple(self._watchers):
                watcher.see(found.get(watcher.node_id))
