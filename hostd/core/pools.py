"""The GPUs of this host and the pool that each is in: seen, and asked to change.

Invariant: asking is answered at once, by an operation or a refusal that says what to do; nothing
but the first state changes here, the rest is core/pool_moves.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from gpupool.hostd.core.gpu import Gpu, Inventory
from gpupool.hostd.core.operation import Operation
from gpupool.hostd.core.pool import (
    NativeKind,
    PoolRecord,
    PoolState,
    registered,
    sysfs_address,
)
from gpupool.hostd.core.pool_book import PoolBook
from gpupool.hostd.core.pool_moves import PoolMoves
from gpupool.hostd.core.pool_ports import CdiFiles, GpuUsers, PoolStore
from gpupool.hostd.core.ports import Clock, PortError
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")


class PoolRefusedError(ValueError):
    """What was asked for cannot be; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """The section [pool] of the configuration."""

    default: str = "pooled"  # of GPUs that are not named: "pooled" or "native"
    native: tuple[str, ...] = ()  # UUIDs and PCI addresses
    native_kind: NativeKind = NativeKind.CONTAINER
    end_grace_s: int = 10  # limits.end_grace_s
    scrub: bool = True  # a card's memory, before it is given out
    private: bool = False  # one user's hostd: the system's may have given out GPUs that it sees

    def starts_native(self, gpu: Gpu) -> bool:
        """Whether a GPU that was not known so far goes to the native pool."""
        address = sysfs_address(gpu.pci_bus_id)
        named = gpu.uuid in self.native or any(
            address and sysfs_address(one) == address for one in self.native
        )
        return named or self.default == "native"


@dataclass(frozen=True, slots=True)
class PoolRequest:
    """`gpupool gpu pool`."""

    uuid: str
    native: bool
    kind: NativeKind | None = None  # None: as it is already, else as configured
    deadline_s: int = -1  # -1: wait for sessions as long as they take
    force: bool = False


@dataclass(frozen=True, slots=True)
class PoolPorts:
    """What Pools needs itself; steps need `pool_steps.Machine`."""

    store: PoolStore
    cdi: CdiFiles
    users: GpuUsers
    clock: Clock


class Pools:
    """The table of GPUs and the decisions about it. Used from the event loop only."""

    def __init__(self, ports: PoolPorts, settings: PoolSettings) -> None:
        self._book = PoolBook(ports.store, ports.clock)
        self._users = ports.users
        self._cdi = ports.cdi
        self._settings = settings
        self.moves = PoolMoves(self._book, ports.users, settings.end_grace_s)

    @property
    def gpus(self) -> tuple[PoolRecord, ...]:
        """Every GPU that was ever seen, in the order of discovery."""
        return self._book.content.gpus

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Those that go on and the last ones that have ended, oldest first."""
        return self._book.content.operations

    @property
    def busy(self) -> bool:
        """Whether a GPU is between the pools."""
        return any(one.moving for one in self.gpus)

    def operation(self, number: int) -> Operation:
        """By number. Raises PoolRefusedError."""
        found = self._book.content.operation(number)
        if found is None:
            known = ", ".join(str(one.id) for one in self.operations) or "none"
            raise PoolRefusedError(f"there is no operation {number}; there are: {known}")
        return found

    def trouble(self, uuid: str) -> str:
        """Why a GPU does not get on; empty: it does."""
        return self._book.trouble.get(uuid, "")

    def sessions(self, uuid: str) -> tuple[int, ...]:
        """Those with a vGPU on it."""
        return self._users.sessions(uuid)

    def placeable(self, uuid: str) -> bool:
        """Whether vGPUs may be placed there."""
        return self._book.placeable(uuid)

    def present(self, uuid: str) -> bool:
        """Whether the driver showed it at the last look."""
        return any(one.uuid == uuid for one in self._book.seen.gpus)

    @property
    def seen(self) -> Inventory:
        """The last look at the machine."""
        return self._book.seen

    @property
    def sees_some(self) -> bool:
        """Whether the last look at the machine found any GPU."""
        return bool(self._book.seen.gpus)

    def on(self, offer: Callable[[Inventory], None], change: Callable[[], None]) -> None:
        """Whom to tell when other GPUs may be given out, and when anything has changed."""
        self._book.on_offer, self._book.on_change = offer, change

    def load(self) -> None:
        """Takes over from an earlier hostd. Raises PortError."""
        self._book.load()

    def see(self, inventory: Inventory) -> Inventory:
        """A look at the machine: registers GPUs that are new. Returns what may be given out."""
        self._book.seen = inventory
        for gpu in self._book.meant(inventory):
            known = self._book.content.gpu(gpu.uuid)
            try:
                self._register(gpu, known)
                self._book.left_alone.pop(gpu.uuid, None)
            except (PortError, PoolRefusedError) as error:
                self._leave_alone(gpu.uuid, str(error))
        return self._book.offered

    def switch(self, request: PoolRequest) -> Operation:
        """Begins to move a GPU, or answers what it does already.

        Raises PoolRefusedError, and PortError when it cannot be written down.
        """
        record = self._book.content.gpu(request.uuid)
        if record is None:
            known = ", ".join(one.uuid for one in self.gpus) or "none"
            raise PoolRefusedError(f"there is no GPU {request.uuid}; there are: {known}")
        if request.native:
            pooled = record.state is PoolState.POOLED
            kind = request.kind or (self._settings.native_kind if pooled else record.kind)
            return self._to_native(record, request, kind)
        return self._to_pooled(record, force=request.force)

    def cancel(self, number: int) -> Operation:
        """Ends an operation whose GPU is still draining. Raises PoolRefusedError, PortError."""
        operation = self.operation(number)
        if not operation.running:
            raise PoolRefusedError(f"operation {number} has ended: {operation.state.value}")
        record = self._book.content.gpu(operation.target)
        if record is None or record.state is not PoolState.DRAINING:
            raise PoolRefusedError(
                f"operation {number} is past draining ({operation.progress}); wait for its end, "
                "then ask for the other pool"
            )
        ended = operation.cancelled("cancelled while draining; pooled again", self._book.utc_text())
        self._book.commit(record.moved(PoolState.POOLED, deadline_s=-1, force=False), ended)
        return ended

    def _to_native(self, record: PoolRecord, request: PoolRequest, kind: NativeKind) -> Operation:
        current = self._book.operation_of(record)
        running = current if current is not None and current.running else None
        there = record.state in (PoolState.DRAINING, PoolState.TO_NATIVE)
        if record.state is not PoolState.POOLED and record.kind is not kind:
            raise PoolRefusedError(
                f"GPU {record.uuid} is {record.state.value} for {record.kind.value}; bring it back "
                "to the pool first"
            )
        if record.state is PoolState.NATIVE:
            return self._already(record, "native")
        if record.state is PoolState.DRAINING and running is not None:
            self._check_native(record, kind, force=request.force)
            self._book.commit(self._with_deadline(record, request), running)
        if there and running is not None:
            return running
        if running is not None:
            raise PoolRefusedError(
                f"GPU {record.uuid} is on its way back to the pool; wait for operation {running.id}"
            )
        self._check_native(record, kind, force=request.force)
        return self._begin_native(record, request, kind)

    def _check_native(self, record: PoolRecord, kind: NativeKind, *, force: bool) -> None:
        if kind is NativeKind.VFIO and record.source != "nvidia":
            raise PoolRefusedError(
                f"GPU {record.uuid} is a software GPU: it exists only inside gpupool's workers, "
                "there is no card to bind to vfio-pci; kind container rehearses a switch"
            )
        if record.source == "nvidia" and not record.pci_address:
            raise PoolRefusedError(f"the PCI address of GPU {record.uuid} is not known")
        reserved = self._users.reserved(record.uuid)
        if reserved and not force:
            raise PoolRefusedError(
                f"GPU {record.uuid} has reserved vGPUs: {', '.join(reserved)}; delete them, or ask "
                "with force: they stay, and nobody can use them until the GPU is pooled again"
            )

    def _begin_native(
        self, record: PoolRecord, request: PoolRequest, kind: NativeKind
    ) -> Operation:
        operation = self._book.new_operation(record.uuid, "native", "draining")
        # One that got stuck on its way back goes on from there: it has no sessions.
        stuck = record.state is PoolState.TO_POOLED
        fresh = record.moved(
            PoolState.TO_NATIVE if stuck else PoolState.DRAINING,
            kind=kind,
            operation=operation.id,
            failure="",
        )
        self._book.commit(self._with_deadline(fresh, request), operation)
        return operation

    def _with_deadline(self, record: PoolRecord, request: PoolRequest) -> PoolRecord:
        at_s = self._book.now_s() + max(request.deadline_s, 0)
        return replace(
            record, deadline_s=request.deadline_s, deadline_at_s=at_s, force=request.force
        )

    def _to_pooled(self, record: PoolRecord, *, force: bool) -> Operation:
        current = self._book.operation_of(record)
        running = current if current is not None and current.running else None
        if record.state is PoolState.DRAINING and running is not None:
            self.cancel(running.id)
            return self._already(record, "pooled")
        if record.state is PoolState.POOLED:
            return self._already(record, "pooled")
        if record.state is PoolState.TO_POOLED and running is not None:
            return running
        if running is not None:
            raise PoolRefusedError(
                f"GPU {record.uuid} is on its way to native; wait for operation {running.id}"
            )
        operation = self._book.new_operation(record.uuid, "pooled", "going back to the pool")
        if record.state is PoolState.TO_POOLED:  # it got stuck: try again, now
            fresh = replace(record, operation=operation.id, failure="")
            self._book.forget_trouble(record.uuid)
        else:
            fresh = record.moved(PoolState.TO_POOLED, operation=operation.id, force=force)
        self._book.commit(fresh, operation)
        return operation

    def _already(self, record: PoolRecord, goal: str) -> Operation:
        """Nothing to do is an operation, too, so that whoever asks needs to know one answer."""
        operation = self._book.new_operation(record.uuid, goal, "")
        ended = operation.succeeded(f"it is {goal}", self._book.utc_text())
        self._book.commit(None, ended)
        return ended

    def _leave_alone(self, uuid: str, why: str) -> None:
        if self._book.left_alone.get(uuid) != why:
            log.error("GPU not registered", extra=fields({"gpu": uuid, "why": why}))
        self._book.left_alone[uuid] = why

    def _register(self, gpu: Gpu, known: PoolRecord | None) -> None:
        address = sysfs_address(gpu.pci_bus_id)
        if known is not None:
            if known.state is PoolState.POOLED and known.pci_address != address:
                self._book.commit(replace(known, pci_address=address))
            return
        record = registered(gpu)
        if self._settings.private and self._cdi.published(record.uuid):
            raise PoolRefusedError("it is given out whole, by another hostd")
        # Of a hostd whose state folder is gone: containers would get a card that is pooled.
        self._cdi.withdraw(record.uuid)
        if not self._settings.starts_native(gpu):
            self._book.commit(record)
            return
        kind = self._settings.native_kind
        try:
            self._check_native(record, kind, force=False)
            self._begin_native(record, PoolRequest(record.uuid, native=True), kind)
        except PoolRefusedError as error:
            log.error("GPU stays pooled", extra=fields({"gpu": gpu.uuid, "why": str(error)}))
            self._book.commit(record)
