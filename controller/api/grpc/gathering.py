"""Questions of many nodes, put to the database together.

After a restart a thousand nodes ask at once, and a question to the database costs more than the
rows that it brings. So whoever comes while one is under way goes with the next; nobody waits
without need.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from gpupool.controller.core.errors import StoreError

A = TypeVar("A")
R = TypeVar("R")


class Gathering(Generic[A, R]):
    """Those of one kind at one replica. `work` answers some, each of another node, in their order.
    Used from one event loop.
    """

    def __init__(self, work: Callable[[Sequence[A]], Awaitable[Sequence[R]]], most: int) -> None:
        self._work = work
        self._most = most  # at once: nobody should wait long for the others
        self._waiting: list[tuple[str, A, asyncio.Future[R]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, node_id: str, asked: A) -> R:
        """The answer, by what the database holds now or later. Raises what `work` raises."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((node_id, asked, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._flush())
        return await future

    async def _flush(self) -> None:
        while self._waiting:
            batch = self._take()
            try:
                await self._answer(batch)
            except StoreError as error:  # it is not about any one of them
                _fail(batch, error)
            except Exception as error:
                if len(batch) == 1:
                    _fail(batch, error)
                    continue
                for one in batch:  # whose fault it is shows
                    try:
                        await self._answer([one])
                    except Exception as its:
                        _fail([one], its)

    def _take(self) -> list[tuple[str, A, asyncio.Future[R]]]:
        """The first of each node, as many as may go; whoever is gone is left out."""
        taken: dict[str, tuple[str, A, asyncio.Future[R]]] = {}
        left = []
        for one in self._waiting:
            if one[2].done():
                continue
            if len(taken) < self._most and one[0] not in taken:
                taken[one[0]] = one
            else:
                left.append(one)
        self._waiting = left
        return list(taken.values())

    async def _answer(self, batch: Sequence[tuple[str, A, asyncio.Future[R]]]) -> None:
        if not batch:
            return
        answers = await self._work([asked for _, asked, _ in batch])
        for (_, _, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)


def _fail(batch: Sequence[tuple[str, A, asyncio.Future[R]]], error: Exception) -> None:
    for _, _, future in batch:
        if not future.done():
            future.set_exception(error)
