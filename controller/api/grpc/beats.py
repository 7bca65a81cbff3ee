"""Signs of life of many nodes, written together: a few transactions a second for a thousand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gpupool.controller.core.node import Beat

GATHER_S = 0.25


class Beats:
    """Those that one replica has taken and not written yet. Used from one event loop."""

    def __init__(self, write: Callable[[list[Beat]], Awaitable[set[str]]]) -> None:
        self._write = write
        self._waiting: dict[tuple[str, int], asyncio.Future[bool]] = {}
        self._task: asyncio.Task[None] | None = None

    async def beat(self, node_id: str, incarnation: int) -> bool:
        """Whether the node is known so, once it is written. Raises what the database raises."""
        key = (node_id, incarnation)
        future = self._waiting.get(key)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._waiting[key] = future
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._flush())
        return await asyncio.shield(future)

    async def _flush(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_S)
            batch, self._waiting = self._waiting, {}
            try:
                known = await self._write([Beat(*key) for key in batch])
            except Exception as error:
                for future in batch.values():
                    future.set_exception(error)
                    future.exception()  # whoever waited may be gone
                continue
            for (node_id, _), future in batch.items():
                future.set_result(node_id in known)
