"""VgpuPages fake: pages in memory, with the checks that real ones leave to the core."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from gpupool.hostd.core.ports import AccountUse, GpuPages, PortError, SessionRow
from gpupool.hostd.core.vgpu import Seat, Vgpu


@dataclass
class FakePages:
    """Implements `ports.VgpuPages`."""

    vgpus: dict[tuple[str, int], Vgpu] = field(default_factory=dict)
    sessions: dict[tuple[str, int], SessionRow] = field(default_factory=dict)
    accounts: dict[int, dict[int, int]] = field(default_factory=dict)
    uses: dict[int, AccountUse] = field(default_factory=dict)  # by vGPU, put there by the test
    overheads: dict[tuple[int, int], int] = field(default_factory=dict)
    leases: set[tuple[str, int]] = field(default_factory=set)
    opened: set[int] = field(default_factory=set)
    fail: str = ""
    _next_fd: int = 20000

    def write_vgpu(self, gpu: str, row: int, vgpu: Vgpu | None) -> None:
        """Fills or clears a row; never one that a session names."""
        self._check()
        used = {(name, one.vgpu_row) for (name, _), one in self.sessions.items()}
        old = self.vgpus.get((gpu, row))
        assert (gpu, row) not in used or (vgpu and old and vgpu.id == old.id)
        if vgpu is None:
            self.vgpus.pop((gpu, row), None)
        else:
            self.vgpus[gpu, row] = vgpu

    def write_session(self, gpu: str, row: int, session: SessionRow | None) -> None:
        """Fills or clears a row."""
        self._check()
        if session is None:
            self.sessions.pop((gpu, row), None)
        else:
            self.sessions[gpu, row] = session

    def write_account(self, vgpu_id: int, row: int, session_id: int) -> None:
        """Fills or clears a row."""
        self._check()
        if session_id:
            self.accounts.setdefault(vgpu_id, {})[row] = session_id
        else:
            self.accounts.get(vgpu_id, {}).pop(row, None)

    def remove_account(self, vgpu_id: int) -> None:
        """Forgets it."""
        self._check()
        self.accounts.pop(vgpu_id, None)

    def write_overhead(self, vgpu_id: int, row: int, overhead_bytes: int) -> None:
        """Keeps it for the test."""
        self._check()
        self.overheads[vgpu_id, row] = overhead_bytes

    def use(self, vgpu_id: int, rows: Collection[int]) -> AccountUse:  # noqa: ARG002
        """What the test has put there."""
        return self.uses.get(vgpu_id, AccountUse())

    def open(self, session_id: int, seat: Seat) -> tuple[int, int, int]:
        """Numbers instead of descriptors."""
        self._check()
        assert self.accounts[seat.vgpu][seat.account_row] == session_id
        self.leases.add((seat.gpu, session_id))
        self._next_fd += 3
        fds = (self._next_fd, self._next_fd + 1, self._next_fd + 2)
        self.opened |= set(fds)
        return fds

    def close(self, fds: Sequence[int]) -> None:
        """Raises KeyError for a second close."""
        for fd in fds:
            self.opened.remove(fd)

    def remove_lease(self, gpu: str, session_id: int) -> None:
        """A second time is no error."""
        self._check()
        self.leases.discard((gpu, session_id))

    def restore(
        self, gpus: Mapping[str, GpuPages], accounts: Mapping[int, Mapping[int, int]]
    ) -> None:
        """Just this."""
        self._check()
        self.vgpus = {(gpu, row): one for gpu in gpus for row, one in gpus[gpu].vgpus.items()}
        self.sessions = {(gpu, row): one for gpu in gpus for row, one in gpus[gpu].sessions.items()}
        living = {(gpu, one.session_id) for (gpu, _), one in self.sessions.items()}
        self.leases &= living
        self.accounts = {
            vgpu_id: {row: session for session, row in rows.items()}
            for vgpu_id, rows in accounts.items()
        }

    def _check(self) -> None:
        if self.fail:
            raise PortError(self.fail)
