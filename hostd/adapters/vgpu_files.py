"""VgpuPages port: the pages as files in the state folder, where a later hostd finds them.

    gpus/UUID/quota            hostd writes, arbiters and workers map to read
    gpus/UUID/SESSION.lease    one worker and the arbiter; its content is theirs
    vgpus/ID.account           the workers of one vGPU

All have their full size from the start and no holes: a store where the tmpfs has no room would be a
SIGBUS.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from gpupool.hostd.adapters import account_page, futex
from gpupool.hostd.adapters.quota_page import BYTES as QUOTA_BYTES
from gpupool.hostd.adapters.quota_page import QuotaPage
from gpupool.hostd.core.ports import AccountUse, GpuPages, PortError, SessionRow
from gpupool.hostd.core.vgpu import Seat, Vgpu
from gpupool.hostd.core.vgpu_table import SESSION_ROWS, VGPU_ROWS

LEASE_BYTES = 4096
_GPU = re.compile(r"[A-Za-z0-9-]{1,80}")


class VgpuFiles:
    """Implements `ports.VgpuPages`."""

    def __init__(self, state_dir: Path) -> None:
        self._gpus = state_dir / "gpus"
        self._vgpus = state_dir / "vgpus"
        for folder in (self._gpus, self._vgpus):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._quota: dict[str, QuotaPage] = {}
        self.on_change: Callable[[str], None] = lambda _: None  # a GPU's quota page is another

    def write_vgpu(self, gpu: str, row: int, vgpu: Vgpu | None) -> None:
        """Fills or clears a row. Raises PortError."""
        page = self._page(gpu)
        if page.write_vgpu(row, vgpu):
            futex.wake(page.tell())
            self.on_change(gpu)

    def write_session(self, gpu: str, row: int, session: SessionRow | None) -> None:
        """Fills or clears a row. Raises PortError."""
        page = self._page(gpu)
        if page.write_session(row, session):
            futex.wake(page.tell())
            self.on_change(gpu)

    def has_shares(self, gpu: str) -> bool:
        """Whether a session on that GPU has a share of its time."""
        try:
            return self._page(gpu).has_shares()
        except PortError:
            return False  # no such GPU any more

    def write_account(self, vgpu_id: int, row: int, session_id: int) -> None:
        """A fresh row, also one for nobody. Raises PortError."""
        path = self._account(vgpu_id)
        if session_id == 0 and not path.exists():
            return
        with _reported(path):
            fd = _open(path, account_page.BYTES, os.O_RDWR)
            try:
                os.pwrite(fd, account_page.row(session_id), account_page.row_at(row))
                header = account_page.HEADER.pack(account_page.MAGIC, account_page.VERSION)
                os.pwrite(fd, header, 0)
            finally:
                os.close(fd)

    def remove_account(self, vgpu_id: int) -> None:
        """A missing one is no error."""
        with _reported(self._account(vgpu_id)):
            self._account(vgpu_id).unlink(missing_ok=True)

    def use(self, vgpu_id: int, rows: Collection[int]) -> AccountUse:
        """What these rows say now."""
        size = account_page.row_at(max(rows, default=0) + 1)
        return account_page.use(self._account_bytes(vgpu_id, size), rows)

    def write_overhead(self, vgpu_id: int, row: int, overhead_bytes: int) -> None:
        """Eight bytes that nobody else writes. Raises PortError."""
        path = self._account(vgpu_id)
        with _reported(path):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.pwrite(fd, overhead_bytes.to_bytes(8, "little"), account_page.overhead_at(row))
            finally:
                os.close(fd)

    def open(self, session_id: int, seat: Seat) -> tuple[int, int, int]:
        """The three pages of a seat, for its worker. Raises PortError."""
        self._page(seat.gpu)  # it exists from here on
        lease = self._lease(seat.gpu, session_id)
        fds: list[int] = []
        try:
            with _reported(lease):
                fds.append(os.open(self._folder(seat.gpu) / "quota", os.O_RDONLY | os.O_CLOEXEC))
                fds.append(os.open(self._account(seat.vgpu), os.O_RDWR | os.O_CLOEXEC))
                fds.append(_open(lease, LEASE_BYTES, os.O_RDWR | os.O_TRUNC))
        except PortError:
            self.close(fds)
            raise
        return fds[0], fds[1], fds[2]

    def close(self, fds: Sequence[int]) -> None:
        """The worker has its own by now."""
        for fd in fds:
            os.close(fd)

    def remove_lease(self, gpu: str, session_id: int) -> None:
        """A missing one is no error."""
        with _reported(self._lease(gpu, session_id)):
            self._lease(gpu, session_id).unlink(missing_ok=True)

    def restore(
        self, gpus: Mapping[str, GpuPages], accounts: Mapping[int, Mapping[int, int]]
    ) -> None:
        """Writes what differs, and removes what belongs to nobody. Raises PortError."""
        there = {path.name for path in self._gpus.iterdir() if _GPU.fullmatch(path.name)}
        for gpu in sorted(there | set(gpus)):
            self._restore_gpu(gpu, gpus.get(gpu, GpuPages({}, {})))
        for path in self._vgpus.glob("*.account"):
            if not path.stem.isdecimal() or int(path.stem) not in accounts:
                path.unlink(missing_ok=True)
        for vgpu_id, rows in accounts.items():
            self._restore_account(vgpu_id, rows)

    def _restore_gpu(self, gpu: str, wanted: GpuPages) -> None:
        for row in range(SESSION_ROWS):
            if row not in wanted.sessions:
                self.write_session(gpu, row, None)
        for row in range(VGPU_ROWS):
            self.write_vgpu(gpu, row, wanted.vgpus.get(row))
        for row, session in wanted.sessions.items():
            self.write_session(gpu, row, session)
        living = {str(session.session_id) for session in wanted.sessions.values()}
        for path in self._folder(gpu).glob("*.lease"):
            if path.stem not in living:
                path.unlink(missing_ok=True)

    def _restore_account(self, vgpu_id: int, rows: Mapping[int, int]) -> None:
        wanted = {row: session for session, row in rows.items()}
        there = account_page.sessions(self._account_bytes(vgpu_id))
        for row in set(wanted) | set(there):
            if wanted.get(row) != there.get(row):
                self.write_account(vgpu_id, row, wanted.get(row, 0))

    def _account_bytes(self, vgpu_id: int, size: int = account_page.BYTES) -> bytes:
        try:
            fd = os.open(self._account(vgpu_id), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(fd, size)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise PortError(f"cannot read {self._account(vgpu_id)}: {error.strerror}") from error

    def _page(self, gpu: str) -> QuotaPage:
        if gpu not in self._quota:
            path = self._folder(gpu) / "quota"
            with _reported(path):
                path.parent.mkdir(mode=0o700, exist_ok=True)
                fd = _open(path, QUOTA_BYTES, os.O_RDWR)
                try:
                    self._quota[gpu] = QuotaPage(mmap.mmap(fd, QUOTA_BYTES))
                finally:
                    os.close(fd)
        return self._quota[gpu]

    def _folder(self, gpu: str) -> Path:
        if not _GPU.fullmatch(gpu):
            raise PortError(f"{gpu!r} is no UUID of a GPU")
        return self._gpus / gpu

    def _account(self, vgpu_id: int) -> Path:
        return self._vgpus / f"{vgpu_id}.account"

    def _lease(self, gpu: str, session_id: int) -> Path:
        return self._folder(gpu) / f"{session_id}.lease"


def _open(path: Path, size: int, flags: int) -> int:
    """A descriptor of a file of that size, made if missing. Raises OSError."""
    fd = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PortError(f"cannot use {path}: {error.strerror}") from error
