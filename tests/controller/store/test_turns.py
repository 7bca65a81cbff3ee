"""Changes that wait go together; each is undone by itself, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from gpupool.controller.core.errors import Kind, RefusedError, StoreError
from gpupool.controller.core.ports import Tables
from gpupool.controller.store.turns import MOST, Turns, Waiting
from tests.controller.pool import Pool
from tests.controller.store.test_sql import run_all


class Slow:
    """Puts changes into effect when it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()
        self.batches: list[int] = []
        self.error: Exception | None = None

    def __call__(self, batch: Sequence[Waiting]) -> None:
        self.begun.set()
        assert self.go.wait(20)
        self.batches.append(len(batch))
        if self.error is not None:
            raise self.error
        for one in batch:
            # What these works do needs no tables.
            one.result = one.work(None)  # type: ignore[arg-type]


def start(count: int, take: Callable[[int], None]) -> list[threading.Thread]:
    """So many threads."""
    threads = [threading.Thread(target=take, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads


def queued(turns: Turns, count: int) -> None:
    """Waits until so many wait."""
    deadline = threading.Event()
    for _ in range(400):
        if len(turns._queue) == count:
            return
        deadline.wait(0.05)
    raise AssertionError(f"{len(turns._queue)} wait")


def test_what_waits_goes_together() -> None:
    slow = Slow()
    turns = Turns(slow, 20)
    results: dict[int, Any] = {}

    def take(number: int) -> None:
        results[number] = turns.take(lambda _: number * 2)

    first = start(1, take)
    assert slow.begun.wait(20)
    others = start(2 * MOST + 3, take)
    queued(turns, 2 * MOST + 3)
    slow.go.set()
    for thread in first + others:
        thread.join(20)
    assert results == {number: number * 2 for number in range(2 * MOST + 3)}
    assert slow.batches == [1, MOST, MOST, 3]


def test_whoever_waits_too_long_leaves_and_did_nothing() -> None:
    slow = Slow()
    turns = Turns(slow, 0.2)
    first = start(1, lambda _: turns.take(lambda _: None))
    assert slow.begun.wait(20)
    with pytest.raises(StoreError) as caught:
        turns.take(lambda _: pytest.fail("it was done after all"))
    assert not caught.value.unsure
    slow.go.set()
    first[0].join(20)
    assert turns.take(lambda _: 7) == 7


def test_what_ends_all_is_told_to_all() -> None:
    slow = Slow()
    slow.error = StoreError("gone")
    slow.go.set()
    turns = Turns(slow, 20)
    with pytest.raises(StoreError):
        turns.take(lambda _: None)
    slow.error = None
    assert turns.take(lambda _: 1) == 1


def test_a_change_that_raises_undoes_only_itself(pool: Pool) -> None:
    """Among others in the same transaction; also where the database itself refused it."""
    pool.tenant("taken")
    gate = threading.Event()
    first = threading.Thread(target=lambda: pool.store.change(lambda _: gate.wait(20)))
    first.start()
    refused: list[Kind] = []

    def make(number: int) -> None:
        try:
            pool.tenant("taken" if number % 3 == 0 else f"t{number}")
        except RefusedError as error:
            refused.append(error.kind)

    works = [partial(make, number) for number in range(12)]
    timer = threading.Timer(0.7, gate.set)
    timer.start()
    run_all(works)
    first.join(20)
    assert refused == [Kind.NAME_TAKEN] * 4

    def count(tables: Tables) -> int:
        return tables.totals().gpus

    assert pool.store.read(count) == 0
    names = {f"t{number}" for number in range(12) if number % 3}
    found = pool.store.read(
        lambda tables: {name for name in names if tables.tenants.by_name(name) is not None}
    )
    assert found == names
