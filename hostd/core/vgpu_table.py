"""Which vGPUs there are, where they are, and which rows of the pages they and sessions have.

Invariants: a row has one owner; a vGPU is on one GPU at a time, which it keeps while sessions use
it. Pure: whoever changes the table changes the pages after it (`allocation`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from gpupool.hostd.core.vgpu import Seat, Vgpu, VgpuMode, is_anonymous

# Of hostd/pages/quota_page.hpp and account_page.hpp; tests compare.
VGPU_ROWS = 256  # of one GPU
SESSION_ROWS = 512  # of one GPU
ACCOUNT_ROWS = 128  # of one vGPU


class NoRowError(ValueError):
    """A page is full, or a row that was asked for has another owner."""


@dataclass(slots=True)
class Placed:
    """A vGPU that is on a GPU now."""

    vgpu: Vgpu
    gpu: str
    row: int
    sessions: dict[int, int] = field(default_factory=dict)  # session: its account row


@dataclass(frozen=True, slots=True)
class Promised:
    """What the vGPUs on one GPU hold, together."""

    compute_percent: int = 0
    memory_mib: int = 0
    vgpus: int = 0
    sessions: int = 0


class VgpuTable:
    """The vGPUs of this host."""

    def __init__(self) -> None:
        self._named: dict[str, Vgpu] = {}
        self._placed: dict[int, Placed] = {}
        self._sessions: dict[str, dict[int, int]] = {}  # GPU: row: session

    @property
    def named(self) -> tuple[Vgpu, ...]:
        """Those with a name, by name."""
        return tuple(self._named[name] for name in sorted(self._named))

    @property
    def placed(self) -> tuple[Placed, ...]:
        """Those that are on a GPU now, by number."""
        return tuple(self._placed[key] for key in sorted(self._placed))

    def find(self, name: str) -> Vgpu | None:
        """The one with that name."""
        return self._named.get(name)

    def place_of(self, vgpu_id: int) -> Placed | None:
        """Where it is; None when it is nowhere."""
        return self._placed.get(vgpu_id)

    def promised(self, gpu: str) -> Promised:
        """What is held on that GPU."""
        here = [one for one in self._placed.values() if one.gpu == gpu]
        return Promised(
            sum(one.vgpu.quota.compute_percent for one in here),
            sum(one.vgpu.quota.memory_mib for one in here),
            len(here),
            len(self._sessions.get(gpu, {})),
        )

    def find_group(self, group: str, gpus: Container[str] | None = None) -> Placed | None:
        """Where the anonymous one is that those share: on one of these GPUs, if some are named."""
        return next(
            (
                one
                for one in self._placed.values()
                if one.vgpu.group == group and (gpus is None or one.gpu in gpus)
            ),
            None,
        )

    def get(self, vgpu_id: int) -> Vgpu | None:
        """The one with that number."""
        placed = self._placed.get(vgpu_id)
        if placed is not None:
            return placed.vgpu
        return next((vgpu for vgpu in self._named.values() if vgpu.id == vgpu_id), None)

    def next_id(self) -> int:
        """For a named one that is new."""
        known = [*self._placed, *(vgpu.id for vgpu in self._named.values())]
        return max((one for one in known if not is_anonymous(one)), default=0) + 1

    def know(self, vgpu: Vgpu) -> None:
        """A named one is known from now on."""
        self._named[vgpu.name] = vgpu

    def add(self, vgpu: Vgpu) -> None:
        """The same, and a reserved one is on its GPU. Raises NoRowError."""
        if vgpu.mode is VgpuMode.RESERVED:
            self.place(vgpu, vgpu.gpu)
        self.know(vgpu)

    def change(self, vgpu: Vgpu) -> None:
        """Another quota for one that is there."""
        if self._is_named(vgpu):
            self._named[vgpu.name] = vgpu
        if vgpu.id in self._placed:
            self._placed[vgpu.id].vgpu = vgpu

    def remove(self, vgpu: Vgpu) -> None:
        """Its name is free. Sessions that still use it keep it, and take it with them."""
        if self._is_named(vgpu):
            del self._named[vgpu.name]
        placed = self._placed.get(vgpu.id)
        if placed is not None and not placed.sessions:
            del self._placed[vgpu.id]

    def place(self, vgpu: Vgpu, gpu: str, row: int | None = None) -> Placed:
        """Puts it on a GPU, in that row or the first free one; or finds it there. Raises
        NoRowError.
        """
        placed = self._placed.get(vgpu.id)
        if placed is None:
            taken = {one.row for one in self._placed.values() if one.gpu == gpu}
            placed = Placed(vgpu, gpu, _row(taken, VGPU_ROWS, f"vGPUs on GPU {gpu}", row))
            self._placed[vgpu.id] = placed
        elif placed.gpu != gpu or (row is not None and placed.row != row):
            raise NoRowError(f"vGPU {vgpu.id} is in row {placed.row} of GPU {placed.gpu}")
        return placed

    def seat(self, vgpu: Vgpu, gpu: str, session_id: int, old: Seat | None = None) -> Seat:
        """Rows for a session, those of `old` if given. Raises NoRowError and changes nothing."""
        was_placed = vgpu.id in self._placed
        placed = self.place(vgpu, gpu, old.vgpu_row if old else None)
        rows = self._sessions.setdefault(gpu, {})
        try:
            session_row = _row(
                rows, SESSION_ROWS, f"sessions on GPU {gpu}", old.session_row if old else None
            )
            account_row = _row(
                set(placed.sessions.values()),
                ACCOUNT_ROWS,
                f"sessions of vGPU {vgpu.name or vgpu.id}",
                old.account_row if old else None,
            )
        except NoRowError:
            if not was_placed:
                del self._placed[vgpu.id]
            raise
        rows[session_row] = session_id
        placed.sessions[session_id] = account_row
        return Seat(gpu, vgpu.id, placed.row, session_row, account_row)

    def leave(self, session_id: int, seats: Iterable[Seat]) -> None:
        """The session's rows are free, and vGPUs that nothing keeps are gone from their GPUs."""
        for seat in seats:
            rows = self._sessions.get(seat.gpu, {})
            if rows.get(seat.session_row) == session_id:
                del rows[seat.session_row]
            placed = self._placed.get(seat.vgpu)
            if placed is None or placed.sessions.pop(session_id, None) is None:
                continue
            kept = placed.vgpu.mode is VgpuMode.RESERVED and self._is_named(placed.vgpu)
            if not placed.sessions and not kept:
                del self._placed[seat.vgpu]

    def _is_named(self, vgpu: Vgpu) -> bool:
        known = self._named.get(vgpu.name)
        return known is not None and known.id == vgpu.id


def _row(taken: Container[int], count: int, what: str, wanted: int | None) -> int:
    if wanted is not None:
        if wanted in taken or not 0 <= wanted < count:
            raise NoRowError(f"row {wanted} for {what} is taken or is none")
        return wanted
    free = next((row for row in range(count) if row not in taken), None)
    if free is None:
        raise NoRowError(f"there are already {count} {what}, as many as can be")
    return free
