"""What is known of the GPUs and their pools, and how it is written down.

Invariant: what is believed was written down before; a record that cannot be written changes
nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from gpupool.hostd.core.gpu import Gpu, Inventory
from gpupool.hostd.core.operation import Operation, OperationState
from gpupool.hostd.core.pool import PoolFile, PoolRecord, PoolState
from gpupool.hostd.core.pool_ports import PoolStore
from gpupool.hostd.core.ports import Clock
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

KIND = "gpu-pool"  # of our operations


class PoolBook:
    """Records, operations, the last look at the machine, and what is being tried again."""

    def __init__(self, store: PoolStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.content = PoolFile()
        self.seen = Inventory((), "")
        self.unlooked: set[str] = set()  # native since before this hostd began
        self.not_before_s: dict[str, float] = {}  # by UUID: when to try again
        self.trouble: dict[str, str] = {}  # by UUID: why a step is being tried again
        self.left_alone: dict[str, str] = {}  # by UUID: why it was not registered
        self.on_offer: Callable[[Inventory], None] = lambda _: None
        self.on_change: Callable[[], None] = lambda: None

    def load(self) -> None:
        """Takes over from an earlier hostd. Raises PortError."""
        self.content = self._store.load()
        for record in self.content.gpus:
            if record.state is PoolState.NATIVE:
                self.unlooked.add(record.uuid)
            if record.deadline_s >= 0:
                # Another boot's clock cannot make it later than it was asked for.
                at_s = min(record.deadline_at_s, self.now_s() + record.deadline_s)
                self.content = self.content.holding((replace(record, deadline_at_s=at_s),))
            if record.moving:
                log.info("GPU goes on", extra=fields(_facts(record)))

    def placeable(self, uuid: str) -> bool:
        """Whether vGPUs may be placed there."""
        record = self.content.gpu(uuid)
        return record is not None and record.state is PoolState.POOLED

    def meant(self, inventory: Inventory) -> list[Gpu]:
        """The GPUs of a look at the machine, without the software GPU where it stands in for cards
        that are away (`gpu = "auto"`): nobody asked for that.
        """
        away = any(
            one.source == "nvidia" and not self.placeable(one.uuid) for one in self.content.gpus
        )
        return [one for one in inventory.gpus if not (away and one.source == "software")]

    @property
    def offered(self) -> Inventory:
        """What was seen last, without GPUs that are not pooled."""
        away = [one for one in self.content.gpus if one.state is not PoolState.POOLED]
        notes = tuple(f"GPU {one.uuid} is {_words(one)}" for one in away)
        notes += tuple(f"GPU {uuid}: {why}" for uuid, why in self.left_alone.items())
        gpus = tuple(one for one in self.meant(self.seen) if self.placeable(one.uuid))
        return replace(self.seen, gpus=gpus, notes=notes + self.seen.notes)

    def commit(self, record: PoolRecord | None, operation: Operation | None = None) -> None:
        """Writes down, then believes it. Raises PortError, and then nothing has changed."""
        before = self.content.gpu(record.uuid) if record is not None else None
        fresh = self.content.holding(
            (record,) if record is not None else (), (operation,) if operation is not None else ()
        )
        self._store.save(fresh)
        self.content = fresh
        if record is not None and (before is None or before.state is not record.state):
            self.not_before_s.pop(record.uuid, None)
            log.info("GPU pool", extra=fields(_facts(record)))
            self.on_offer(self.offered)
        self.on_change()

    def new_operation(self, uuid: str, goal: str, progress: str) -> Operation:
        """One that begins; to be committed."""
        number = self.content.last_operation + 1
        return Operation(
            number, KIND, uuid, goal, OperationState.RUNNING, progress, 0, self.utc_text()
        )

    def operation_of(self, record: PoolRecord) -> Operation | None:
        """The last one that moved this GPU."""
        return self.content.operation(record.operation)

    def wait(self, uuid: str, delay_s: float, why: str) -> None:
        """Not before that time; `why` is told to operators, where there is something to tell."""
        self.not_before_s[uuid] = self.now_s() + delay_s
        if why and self.trouble.get(uuid) != why:
            log.error("GPU does not get on", extra=fields({"gpu": uuid, "why": why}))
        if why:
            self.trouble[uuid] = why

    def forget_trouble(self, uuid: str) -> None:
        """It got on."""
        self.trouble.pop(uuid, None)
        self.not_before_s.pop(uuid, None)

    def now_s(self) -> float:
        """Monotonic."""
        return self._clock.monotonic_s()

    def utc_text(self) -> str:
        """For people."""
        return self._clock.utc_text()


def _facts(record: PoolRecord) -> dict[str, object]:
    facts: dict[str, object] = {"gpu": record.uuid, "state": record.state.value}
    if record.state is not PoolState.POOLED:
        facts |= {"kind": record.kind.value, "operation": record.operation}
    return facts | ({"why": record.failure} if record.failure else {})


def _words(record: PoolRecord) -> str:
    words = {
        PoolState.DRAINING: f"draining, to be native ({record.kind.value})",
        PoolState.TO_NATIVE: f"becoming native ({record.kind.value})",
        PoolState.NATIVE: f"native ({record.kind.value}): given out whole",
        PoolState.TO_POOLED: "on its way back to the pool",
    }
    return words.get(record.state, record.state.value)
