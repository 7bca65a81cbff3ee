"""Gives sessions their places: which vGPU on which GPU, and its rows in the pages.

The table decides and the pages follow, in this order on the way in: the session's record (`host`
saves it), then its rows, then its worker. So whatever is in a page beyond what the records say is
left over, and `adopt` clears it. Nothing here waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from gpupool.hostd.core import placement
from gpupool.hostd.core.gpu import Inventory
from gpupool.hostd.core.ports import (
    AccountUse,
    GpuPages,
    PortError,
    SessionRow,
    VgpuPages,
    VgpuStore,
    WorkerProcess,
)
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.vgpu import Quota, Seat, Vgpu, VgpuMode, Wanted, anonymous_id, group_of
from gpupool.hostd.core.vgpu_table import NoRowError, VgpuTable
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a client may go now."""

    quota: Quota
    gpus: tuple[str, ...]  # UUIDs
    vgpus: tuple[Vgpu, ...] = ()  # on each of them; none: one of its own on each
    group: str = ""  # who may share that

    @property
    def names(self) -> str:
        """Of the named ones."""
        return ",".join(vgpu.name for vgpu in self.vgpus)


@dataclass(frozen=True, slots=True)
class NoPlace:
    """Why a client may go nowhere now."""

    text: str
    may_wait: bool  # it may fit later


class Allocations:
    """Of one host."""

    def __init__(self, pages: VgpuPages, store: VgpuStore) -> None:
        self._pages = pages
        self._store = store
        self.table = VgpuTable()

    def plan(self, wanted: Wanted, inventory: Inventory) -> Plan | NoPlace:
        """Where that client would go."""
        offered = {gpu.uuid for gpu in inventory.gpus}  # a program's next process is elsewhere, too
        shared = self.table.find_group(wanted.group, offered) if wanted.group else None
        if shared is not None:
            return Plan(shared.vgpu.quota, (shared.gpu,), (shared.vgpu,))
        if wanted.vgpu and not wanted.group:
            return self._plan_all(wanted, inventory)
        if not wanted.quota.holds:
            return Plan(wanted.quota, tuple(gpu.uuid for gpu in inventory.gpus))
        where = self.rooms(inventory)
        room = placement.choose(wanted.quota, where)
        if room is None:
            return _no_room(wanted.quota, where)
        return Plan(wanted.quota, (room.gpu,), group=wanted.group)

    def needs_room(self, wanted: Wanted) -> bool:
        """Whether that client needs what others may be waiting for."""
        if wanted.group:
            return self.table.find_group(wanted.group) is None
        if wanted.vgpu:
            named = [self.table.find(name) for name in (wanted.vgpu, *wanted.more)]
            return any(
                vgpu is not None and vgpu.quota.holds and self.table.place_of(vgpu.id) is None
                for vgpu in named
            )
        return wanted.quota.holds

    def priority_of(self, wanted: Wanted) -> int:
        """Of the vGPU that a client asks for, of several the first."""
        vgpu = None if wanted.group else self.table.find(wanted.vgpu)
        return vgpu.quota.priority if vgpu else wanted.quota.priority

    def rooms(self, inventory: Inventory) -> tuple[placement.Room, ...]:
        """What may still be promised of each GPU."""
        overhead: dict[str, int] = {}
        for placed in self.table.placed:
            used = self.use(placed.vgpu.id).overhead_bytes
            overhead[placed.gpu] = overhead.get(placed.gpu, 0) + used
        return placement.rooms(inventory.gpus, self.table, overhead)

    def reserved_on(self, gpu: str) -> tuple[str, ...]:
        """Names of the reserved vGPUs on that GPU."""
        here = [one.vgpu for one in self.table.placed if one.gpu == gpu]
        return tuple(vgpu.name for vgpu in here if vgpu.mode is VgpuMode.RESERVED)

    def use(self, vgpu_id: int) -> AccountUse:
        """What the sessions of a vGPU use; nothing, and logged, where that cannot be read."""
        placed = self.table.place_of(vgpu_id)
        if placed is None:
            return AccountUse()
        try:
            return self._pages.use(vgpu_id, placed.sessions.values())
        except PortError as error:
            log.error("account unreadable", extra=fields({"vgpu": vgpu_id, "error": str(error)}))
            return AccountUse()

    def _plan_all(self, wanted: Wanted, inventory: Inventory) -> Plan | NoPlace:
        """Each of the named ones on a GPU of its own, as far as there are GPUs: a session has one
        vGPU on a GPU.
        """
        names = [wanted.vgpu, *wanted.more]
        if wanted.all_of_them:  # those that have a place cannot give way to the others
            names.sort(key=lambda name: self._gpu_of(name) == "")
        plan = self._plan_named(replace(wanted, vgpu=names[0]), inventory, ())
        for name in names[1:]:
            if isinstance(plan, NoPlace):
                break
            gpu = self._gpu_of(name)
            if gpu in plan.gpus if gpu else len(plan.gpus) == len(inventory.gpus):
                if not wanted.all_of_them:
                    continue
                return NoPlace(
                    f"vGPUs {', '.join((wanted.vgpu, *wanted.more))} were asked for; {name} is on "
                    "the GPU of another of them, or there are too few GPUs: a program has one vGPU "
                    "on a GPU",
                    may_wait=False,
                )
            more = self._plan_named(replace(wanted, vgpu=name), inventory, plan.gpus)
            if isinstance(more, NoPlace):
                return more
            plan = replace(plan, gpus=(*plan.gpus, *more.gpus), vgpus=(*plan.vgpus, *more.vgpus))
        return plan if isinstance(plan, NoPlace) else _in_order(plan, inventory)

    def _gpu_of(self, name: str) -> str:
        """Where the vGPU of that name is; empty: nowhere yet."""
        found = self.table.find(name)
        placed = self.table.place_of(found.id) if found is not None else None
        return placed.gpu if placed is not None else ""

    def _plan_named(
        self, wanted: Wanted, inventory: Inventory, taken: tuple[str, ...]
    ) -> Plan | NoPlace:
        """`taken`: GPUs where it cannot be put, unless it is there."""
        vgpu = self.table.find(wanted.vgpu)
        another_vms = vgpu is not None and vgpu.vm not in ("", wanted.vm)
        if vgpu is None or another_vms or (vgpu.users and wanted.uid not in vgpu.users):
            return NoPlace(
                f"there is no vGPU {wanted.vgpu!r} here for this user; `gpupool vgpu list` on the "
                "host shows all",
                may_wait=False,
            )
        placed = self.table.place_of(vgpu.id)
        if placed is not None:
            if placed.gpu in (gpu.uuid for gpu in inventory.gpus):
                return Plan(vgpu.quota, (placed.gpu,), (vgpu,))
            # An on-demand one is placed elsewhere when its sessions on a leaving GPU have ended.
            leaving = next((note for note in inventory.notes if placed.gpu in note), "")
            why = leaving or f"GPU {placed.gpu} is not there now; see `gpupool doctor` on the host"
            return NoPlace(
                f"vGPU {vgpu.name} takes no clients: {why}",
                may_wait=False,  # it would hold up those who wait for room
            )
        where = tuple(room for room in self.rooms(inventory) if room.gpu not in taken)
        room = placement.choose(vgpu.quota, where)
        if room is None:
            return _no_room(vgpu.quota, where)
        return Plan(vgpu.quota, (room.gpu,), (vgpu,))

    def seat(self, session_id: int, plan: Plan) -> tuple[Seat, ...]:
        """Rows for a session. Raises NoRowError and leaves nothing behind."""
        seats: list[Seat] = []
        try:
            for index, gpu in enumerate(plan.gpus):
                vgpu = (
                    plan.vgpus[index]
                    if plan.vgpus
                    else Vgpu(anonymous_id(session_id, index), plan.quota, group=plan.group)
                )
                seats.append(self.table.seat(vgpu, gpu, session_id))
        except NoRowError:
            self.table.leave(session_id, seats)
            raise
        return tuple(seats)

    def enter(self, session: Session) -> None:
        """Writes the rows of a session that has no worker yet. Raises PortError."""
        for seat in session.seats:
            placed = self.table.place_of(seat.vgpu)
            if placed is not None:
                self._pages.write_account(seat.vgpu, seat.account_row, session.id)
                self._pages.write_vgpu(seat.gpu, seat.vgpu_row, placed.vgpu)

    def open(self, session: Session) -> list[tuple[int, int, int]]:
        """The pages of a session, for its worker; to be closed. Raises PortError."""
        opened: list[tuple[int, int, int]] = []
        try:
            for seat in session.seats:
                opened.append(self._pages.open(session.id, seat))
        except PortError:
            self.close(opened)
            raise
        return opened

    def close(self, opened: Iterable[tuple[int, int, int]]) -> None:
        """Closes hostd's copies."""
        for fds in opened:
            self._pages.close(fds)

    def started(self, session: Session) -> None:
        """Tells the arbiters of a session's worker. Raises PortError."""
        worker = WorkerProcess(session.worker_pid, session.worker_start_ticks)
        for seat in session.seats:
            row = SessionRow(session.id, seat.vgpu_row, worker)
            self._pages.write_session(seat.gpu, seat.session_row, row)

    def leave(self, session: Session) -> None:
        """The session is over: its rows are free. What cannot be cleared is logged: whoever gets
        the row next writes over it.
        """
        self.table.leave(session.id, session.seats)
        pages = self._pages
        for seat in session.seats:
            self._try(pages.write_session, seat.gpu, seat.session_row, None)
            self._try(pages.write_account, seat.vgpu, seat.account_row, 0)
            self._try(pages.remove_lease, seat.gpu, session.id)
            placed = self.table.place_of(seat.vgpu)
            if placed is None:
                self._try(pages.write_vgpu, seat.gpu, seat.vgpu_row, None)
            if placed is None or not placed.sessions:
                self._try(pages.remove_account, seat.vgpu)

    def adopt(self, sessions: Iterable[Session]) -> None:
        """Finds everything again: `sessions` are those that go on. Raises PortError."""
        named = {vgpu.id: vgpu for vgpu in self._store.load()}
        rows: dict[str, dict[int, SessionRow]] = {}
        for session in sessions:
            worker = WorkerProcess(session.worker_pid, session.worker_start_ticks)
            for seat in session.seats:
                group = group_of(session.owner, session.vgpu)
                vgpu = named.get(seat.vgpu) or Vgpu(seat.vgpu, session.quota, group=group)
                try:
                    self.table.seat(vgpu, seat.gpu, session.id, seat)
                except NoRowError as error:
                    log.error(
                        "session without its rows",
                        extra=fields({"session": session.id, "error": str(error)}),
                    )
                    continue
                row = SessionRow(session.id, seat.vgpu_row, worker)
                rows.setdefault(seat.gpu, {})[seat.session_row] = row
        for vgpu in named.values():
            self._find_again(vgpu)
        self._restore(rows)

    def _find_again(self, vgpu: Vgpu) -> None:
        """A reserved one keeps its promise, unless its record was changed to what does not fit."""
        try:
            promised = self.table.promised(vgpu.gpu).compute_percent
            placed = self.table.place_of(vgpu.id) is not None
            if vgpu.gpu and not placed and vgpu.quota.compute_percent + promised > 100:
                raise NoRowError(f"{promised}% of GPU {vgpu.gpu} are promised to others")
            self.table.add(vgpu)
        except NoRowError as error:
            self.table.know(vgpu)
            log.error("vGPU not placed", extra=fields({"vgpu": vgpu.name, "error": str(error)}))

    def _restore(self, sessions: dict[str, dict[int, SessionRow]]) -> None:
        vgpus: dict[str, dict[int, Vgpu]] = {}
        accounts: dict[int, dict[int, int]] = {}
        for placed in self.table.placed:
            vgpus.setdefault(placed.gpu, {})[placed.row] = placed.vgpu
            if placed.sessions:
                accounts[placed.vgpu.id] = dict(placed.sessions)
        self._pages.restore(
            {
                gpu: GpuPages(vgpus.get(gpu, {}), sessions.get(gpu, {}))
                for gpu in set(vgpus) | set(sessions)
            },
            accounts,
        )

    def _try(self, action: Callable[..., None], *what: object) -> None:
        try:
            action(*what)
        except PortError as error:
            log.error("page not cleared", extra=fields({"error": str(error)}))


def _in_order(plan: Plan, inventory: Inventory) -> Plan:
    """The GPUs as a program that has all of them sees them: NVML names them in that order."""
    order = [gpu.uuid for gpu in inventory.gpus]
    pairs = sorted(zip(plan.gpus, plan.vgpus, strict=True), key=lambda one: order.index(one[0]))
    vgpus = tuple(vgpu for _, vgpu in pairs)
    return replace(plan, quota=vgpus[0].quota, gpus=tuple(gpu for gpu, _ in pairs), vgpus=vgpus)


def _no_room(quota: Quota, where: tuple[placement.Room, ...]) -> NoPlace:
    asked, left = placement.describe(quota), placement.left(where)
    return NoPlace(
        f"{asked} was asked for; left is {left}; ask for less, or wait (gpupool run --wait "
        "SECONDS)",
        may_wait=True,
    )
