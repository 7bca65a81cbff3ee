"""Questions of many nodes that go to the database together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from gpupool.controller.api.grpc.gathering import Gathering
from gpupool.controller.core.errors import StoreError


class Database:
    """Answers a question with its double, when it is let."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.open = asyncio.Event()
        self.error: Exception | None = None

    async def answer(self, questions: Sequence[int]) -> list[int]:
        """As `Gathering` wants it."""
        self.asked.append(list(questions))
        await self.open.wait()
        if self.error is not None and 7 in questions:
            raise self.error
        return [2 * one for one in questions]


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


async def ask(gathering: Gathering[int, int], *questions: tuple[str, int]) -> list[Any]:
    tasks = [asyncio.create_task(gathering.ask(*one)) for one in questions]
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_those_who_come_meanwhile_go_together_each_node_once() -> None:
    async def work() -> None:
        database = Database()
        gathering = Gathering(database.answer, most=3)
        names = ["a", "b", "b", "c", "d", "e"]
        tasks = asyncio.create_task(
            ask(gathering, *((name, number) for number, name in enumerate(names)))
        )
        await asyncio.sleep(0.05)
        database.open.set()
        assert await tasks == [0, 2, 4, 6, 8, 10]
        assert database.asked == [[0, 1, 3], [2, 4, 5]]
        assert await gathering.ask("a", 21) == 42  # it goes on

    run(work())


def test_a_question_that_fails_fails_alone() -> None:
    async def work() -> None:
        database = Database()
        database.open.set()
        database.error = ValueError("seven")
        gathering = Gathering(database.answer, most=8)
        first, seventh, third = await ask(gathering, ("a", 1), ("b", 7), ("c", 3))
        assert (first, third) == (2, 6)
        assert seventh is database.error

    run(work())


def test_a_database_that_is_away_is_asked_once() -> None:
    async def work() -> None:
        database = Database()
        database.open.set()
        database.error = StoreError("away")
        gathering = Gathering(database.answer, most=8)
        answers = await ask(gathering, ("a", 1), ("b", 7), ("c", 3))
        assert answers == [database.error] * 3
        assert len(database.asked) == 1

    run(work())


def test_whoever_has_left_is_not_asked_for() -> None:
    async def work() -> None:
        database = Database()
        gathering = Gathering(database.answer, most=1)
        tasks = [asyncio.create_task(gathering.ask(str(one), one)) for one in range(3)]
        await asyncio.sleep(0.05)
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        database.open.set()
        assert [await tasks[0], await tasks[2]] == [0, 4]
        assert database.asked == [[0], [2]]

    run(work())
