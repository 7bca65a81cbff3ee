"""What the driver takes besides: its own figures for workers, less what they have charged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gpupool.hostd.adapters.vgpu_files import VgpuFiles
from gpupool.hostd.api.overhead import measure_overhead
from gpupool.hostd.core.overhead import note_overhead
from gpupool.hostd.core.ports import AccountUse
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.vgpu import Seat
from tests.fakes.vgpu_pages import FakePages
from tests.hostd.test_host import DOOR, HELLO, PEER, Machine
from tests.hostd.test_session import SESSION

MIB = 1 << 20
SEATS = (Seat("GPU-a", 5, 0, 0, 3), Seat("GPU-b", 6, 0, 0, 4))
RUNNING = replace(SESSION, id=7, seats=SEATS, worker_pid=42)


def test_what_a_worker_holds_beyond_its_charge() -> None:
    pages = FakePages(uses={5: AccountUse(100 * MIB, 7)})
    note_overhead(pages, [RUNNING], {"GPU-a": {42: 620 * MIB, 43: 5}, "GPU-b": {42: 8 * MIB}})
    assert pages.overheads == {(5, 3): 520 * MIB, (6, 4): 8 * MIB}


def test_never_below_nothing() -> None:
    pages = FakePages(uses={5: AccountUse(100 * MIB, 7)})
    note_overhead(pages, [RUNNING], {"GPU-a": {42: 90 * MIB}})
    assert pages.overheads == {(5, 3): 0}


def test_a_worker_that_the_driver_does_not_know_keeps_its_figure() -> None:
    pages = FakePages()
    note_overhead(pages, [RUNNING], {"GPU-a": {1: MIB}})
    note_overhead(pages, [RUNNING], {})
    assert pages.overheads == {}


def test_a_page_that_cannot_be_written_is_no_end() -> None:
    pages = FakePages(fail="no space")
    note_overhead(pages, [RUNNING], {"GPU-a": {42: MIB}})
    assert pages.overheads == {}


def test_it_stands_in_the_row(tmp_path: Path) -> None:
    """And changes nothing else there."""
    pages = VgpuFiles(tmp_path)
    pages.write_account(5, 3, 7)
    pages.write_overhead(5, 3, 520 * MIB)
    assert pages.use(5, [3]) == AccountUse(0, 520 * MIB)
    assert pages.use(5, [0, 1, 2, 4]) == AccountUse()


async def until(condition: Callable[[], bool]) -> None:
    """Waits, with a bound."""
    for _ in range(20_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came")


class Looks:
    """ProcessMemory fake: counts."""

    def __init__(self) -> None:
        self.count = 0

    def look(self) -> dict[str, dict[int, int]]:
        """Nothing is held."""
        self.count += 1
        return {}


def test_no_look_while_a_card_changes_its_driver() -> None:
    """A look has every card open, and the driver does not let an open card go."""
    one = Machine()
    host = one.host()
    assert isinstance(host.open(HELLO, PEER, DOOR, 7), Session)

    async def body() -> None:
        looks, alone = Looks(), asyncio.Lock()
        task = asyncio.create_task(measure_overhead(host, FakePages(), looks, alone, 0.001))
        try:
            await until(lambda: looks.count > 0)
            async with alone:
                before = looks.count
                await asyncio.sleep(0.1)
                assert looks.count == before
            await until(lambda: looks.count > before)
        finally:
            task.cancel()

    asyncio.run(body())
