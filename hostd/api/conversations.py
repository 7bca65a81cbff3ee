"""Accepting: one task a connection, for every door of hostd's."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine

from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

_PAUSE_S = 0.2  # when the process has run out of descriptors

Talk = Callable[[socket.socket], Coroutine[None, None, None]]


class Conversations:
    """The connections of one door that are being talked to."""

    def __init__(self, most: int | None = None) -> None:
        """`most`: connections above it are closed at once; None: `talk` sees to that."""
        self._most = most
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    async def accept(self, listener: socket.socket, endpoint: str, talk: Talk) -> None:
        """Until cancelled. `talk` owns the connection; `endpoint` is for the log."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.error(
                    "accept failed", extra=fields({"endpoint": endpoint, "error": str(error)})
                )
                await asyncio.sleep(_PAUSE_S)
                continue
            if self._most is not None and len(self._tasks) >= self._most:
                connection.close()
                continue
            task = loop.create_task(talk(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Ends all of them."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
