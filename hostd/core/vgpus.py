"""What people and controllers do with vGPUs: make, look at, resize and delete them.

On the way in the record is written first, then the table, then the page that workers and arbiters
read; so a hostd that dies on the way finds the whole change or nothing of it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from gpupool.hostd.core import placement
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.placement import MIB, Room
from gpupool.hostd.core.ports import AccountUse, VgpuPages, VgpuStore
from gpupool.hostd.core.vgpu import (
    Quota,
    Vgpu,
    VgpuMode,
    check_name,
    check_quota,
    is_anonymous,
)
from gpupool.hostd.core.vgpu_table import NoRowError
from gpupool.hostd.core.waiting_line import Ticket
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")


class VgpuError(ValueError):
    """It cannot be done. The text says what was asked, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class VgpuFacts:
    """A vGPU and what it does now."""

    vgpu: Vgpu
    gpu: str  # empty: on none
    sessions: tuple[int, ...]
    use: AccountUse


class Vgpus:
    """The vGPUs of one host."""

    def __init__(self, host: Host, pages: VgpuPages, store: VgpuStore) -> None:
        self._host = host
        self._pages = pages
        self._store = store
        self._table = host.allocations.table

    def create(self, vgpu: Vgpu) -> VgpuFacts:
        """Makes a named one of these properties; its number is ours. Raises VgpuError and
        PortError.
        """
        problem = check_name(vgpu.name) or check_quota(vgpu.quota)
        if problem:
            raise VgpuError(problem)
        if self._table.find(vgpu.name) is not None:
            raise VgpuError(f"there is a vGPU {vgpu.name} already; choose another name")
        where = self._host.rooms()
        if vgpu.gpu:
            where = tuple(room for room in where if room.gpu == vgpu.gpu)
            if not where or vgpu.mode is not VgpuMode.RESERVED:
                raise VgpuError(
                    f"GPU {vgpu.gpu} was asked for: only a reserved vGPU has a GPU of its own, one "
                    "that `gpupool devices` shows"
                )
        if vgpu.mode is VgpuMode.RESERVED:
            room = placement.choose(vgpu.quota, where)
            if room is None:
                raise VgpuError(_no_room(vgpu.quota, where))
            gpu = room.gpu
        else:
            self._check_ever_fits(vgpu.quota)
            gpu = ""
        made = replace(vgpu, id=self._table.next_id(), gpu=gpu)
        try:
            self._table.add(made)
        except NoRowError as error:
            raise VgpuError(f"{error}; delete some") from error
        try:
            self._store.save(made)
        except BaseException:
            self._table.remove(made)
            raise
        self._write(made)
        log.info("vGPU created", extra=fields({"vgpu": made.name, "id": made.id, "gpu": gpu}))
        self._host.changed()
        return self.facts(made)

    def all(self) -> list[VgpuFacts]:
        """Named ones by name, then anonymous ones by number."""
        named = self._table.named
        known = {vgpu.id for vgpu in named}
        others = [one.vgpu for one in self._table.placed if one.vgpu.id not in known]
        return [self.facts(vgpu) for vgpu in (*named, *others)]

    def facts(self, vgpu: Vgpu) -> VgpuFacts:
        """What it does now."""
        placed = self._table.place_of(vgpu.id)
        if placed is None:
            return VgpuFacts(vgpu, "", (), AccountUse())
        sessions = tuple(sorted(placed.sessions))
        return VgpuFacts(vgpu, placed.gpu, sessions, self._host.allocations.use(vgpu.id))

    def rooms(self) -> tuple[Room, ...]:
        """What may still be promised of each GPU."""
        return self._host.rooms()

    def waiting(self) -> tuple[Ticket, ...]:
        """Who waits for room, in order."""
        return self._host.line.tickets

    def find(self, which: str | int) -> Vgpu:
        """By name or number. Raises VgpuError."""
        found = self._table.find(which) if isinstance(which, str) else self._table.get(which)
        if found is None:
            raise VgpuError(f"there is no vGPU {which!r}; `gpupool vgpu list` shows all")
        return found

    def resize(self, which: str | int, quota: Quota) -> VgpuFacts:
        """Another quota, at once. Raises VgpuError and PortError, and has then changed nothing."""
        vgpu = self.find(which)
        problem = check_quota(quota)
        if problem:
            raise VgpuError(problem)
        placed = self._table.place_of(vgpu.id)
        if placed is None:
            self._check_ever_fits(quota)
        else:
            self._check_grows(vgpu, quota, placed.gpu)
            used_mib = -(-self._host.allocations.use(vgpu.id).memory_bytes // MIB)
            if 0 < quota.memory_mib < used_mib:
                raise VgpuError(
                    f"{quota.memory_mib} MiB was asked for, {used_mib} MiB are in use; ask for at "
                    "least that, or end sessions"
                )
        sessions = placed.sessions if placed else {}
        shared = [one for one in self._host.sessions if one.id in sessions]
        if is_anonymous(vgpu.id) and any(len(one.seats) > 1 for one in shared):
            raise VgpuError(
                f"vGPU {vgpu.id} belongs to a session that asked for nothing and has several GPUs; "
                "run its program with --compute, --memory or --vgpu"
            )
        changed = vgpu.resized(quota)
        if self._table.find(vgpu.name) == vgpu:
            self._store.save(changed)
        self._host.save_quota(vgpu.id, sessions, quota)
        self._table.change(changed)
        self._write(changed)
        facts = {"vgpu": vgpu.name, "id": vgpu.id, "compute_percent": quota.compute_percent}
        log.info("vGPU resized", extra=fields({**facts, "memory_mib": quota.memory_mib}))
        self._host.changed()
        return self.facts(changed)

    def delete(self, which: str | int, *, force: bool = False) -> tuple[int, ...]:
        """Forgets a named one. The sessions that were told to end. Raises VgpuError, PortError."""
        vgpu = self.find(which)
        if is_anonymous(vgpu.id) or self._table.find(vgpu.name) != vgpu:
            raise VgpuError(f"vGPU {vgpu.id} belongs to its sessions and goes with them; end those")
        sessions = self.facts(vgpu).sessions
        if sessions and not force:
            used_by = ", ".join(str(one) for one in sessions)
            raise VgpuError(f"vGPU {vgpu.name} is used by session {used_by}; end it, or use force")
        self._store.remove(vgpu)
        placed = self._table.place_of(vgpu.id)
        self._table.remove(vgpu)
        if placed is not None and not sessions:
            self._pages.write_vgpu(placed.gpu, placed.row, None)
        for session_id in sessions:
            self._host.end(session_id)
        log.info("vGPU deleted", extra=fields({"vgpu": vgpu.name, "id": vgpu.id}))
        self._host.changed()
        return sessions

    def _write(self, vgpu: Vgpu) -> None:
        placed = self._table.place_of(vgpu.id)
        if placed is not None:
            self._pages.write_vgpu(placed.gpu, placed.row, vgpu)

    def _check_ever_fits(self, quota: Quota) -> None:
        """On demand: whether some GPU could take it, were it empty."""
        gpus = self._host.inventory.gpus
        most_mib = max((placement.usable_mib(gpu) for gpu in gpus), default=0)
        if quota.memory_mib > most_mib:
            raise VgpuError(
                f"{quota.memory_mib} MiB was asked for, a GPU here has {most_mib} MiB for "
                "programs; ask for at most that"
            )

    def _check_grows(self, vgpu: Vgpu, quota: Quota, gpu: str) -> None:
        """Where it is: whether what it gets more is there."""
        room = next((one for one in self._host.rooms() if one.gpu == gpu), Room(gpu, 0, 0, 0))
        more = Quota(
            max(0, quota.compute_percent - vgpu.quota.compute_percent),
            max(0, quota.memory_mib - vgpu.quota.memory_mib),
        )
        if not room.fits(more):
            raise VgpuError(_no_room(quota, (room,), placement.describe(more) + " more"))


def _no_room(quota: Quota, where: tuple[Room, ...], more: str = "") -> str:
    needed = f" ({more})" if more else ""
    return (
        f"{placement.describe(quota)} was asked for{needed}; left is {placement.left(where)}; ask "
        "for less, or resize or delete others (`gpupool vgpu list`)"
    )
