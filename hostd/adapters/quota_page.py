"""The layout of a GPU's quota page: the Python twin of hostd/pages/quota_page.hpp.

`tests/hostd/test_pages.py` compiles the header and compares. hostd is the only writer; arbiters and
workers read while it writes, so each number is stored whole, and a row's `id` last when the row is
filled and first when it is cleared. x86-64 keeps the order of stores, and so does the interpreter.
"""

from __future__ import annotations

import ctypes
import mmap

from gpupool.hostd.core.ports import SessionRow
from gpupool.hostd.core.vgpu import SharePolicy, Vgpu

BYTES = 65536
MAGIC = 0x544F5551  # "QUOT"
VERSION = 1
MIB = 1 << 20
POLICIES = {SharePolicy.ELASTIC: 0, SharePolicy.HARD: 1}

_U32, _U64 = ctypes.c_uint32, ctypes.c_uint64


class VgpuRow(ctypes.Structure):
    """QuotaPage::Vgpu."""

    _fields_ = (
        ("id", _U64),
        ("memory_bytes", _U64),
        ("compute_percent", _U32),
        ("policy", _U32),
        ("priority", _U32),
        ("reserved", _U32),
        ("_padding", ctypes.c_uint8 * 32),
    )


class SessionRows(ctypes.Structure):
    """QuotaPage::Session."""

    _fields_ = (
        ("id", _U64),
        ("vgpu", _U32),
        ("worker_pid", _U32),
        ("worker_start_ticks", _U64),
        ("_padding", ctypes.c_uint8 * 8),
    )


class Page(ctypes.Structure):
    """QuotaPage."""

    _fields_ = (
        ("magic", _U32),
        ("version", _U32),
        ("changed", _U32),
        ("_padding", ctypes.c_uint8 * 52),
        ("vgpu", VgpuRow * 256),
        ("session", SessionRows * 512),
    )


class QuotaPage:
    """One page, mapped to write."""

    def __init__(self, mapping: mmap.mmap) -> None:
        """Takes the mapping over, and makes a page of it if it is none yet."""
        self._mapping = mapping  # keeps the memory
        self._page = Page.from_buffer(mapping)
        self._page.version = VERSION
        self._page.magic = MAGIC

    def write_vgpu(self, row: int, vgpu: Vgpu | None) -> bool:
        """Fills or clears a row. False when it says so already."""
        at = self._page.vgpu[row]
        if vgpu is None:
            was, at.id = at.id, 0
            return bool(was)
        quota = vgpu.quota
        wanted = (
            quota.memory_mib * MIB,
            quota.compute_percent,
            POLICIES[quota.policy],
            quota.priority,
        )
        if (at.id, at.memory_bytes, at.compute_percent, at.policy, at.priority) == (
            vgpu.id,
            *wanted,
        ):
            return False
        if at.id != vgpu.id:
            at.id = 0
        at.memory_bytes, at.compute_percent, at.policy, at.priority = wanted
        at.id = vgpu.id
        return True

    def write_session(self, row: int, session: SessionRow | None) -> bool:
        """Fills or clears a row. False when it says so already."""
        at = self._page.session[row]
        if session is None:
            was, at.id = at.id, 0
            return bool(was)
        wanted = (session.vgpu_row, session.worker.pid, session.worker.start_ticks)
        if (at.id, at.vgpu, at.worker_pid, at.worker_start_ticks) == (session.session_id, *wanted):
            return False
        at.id = 0
        at.vgpu, at.worker_pid, at.worker_start_ticks = wanted
        at.id = session.session_id
        return True

    def has_shares(self) -> bool:
        """Whether a session has a vGPU with a share of the GPU's time."""
        page = self._page
        sharing = {row for row in range(len(page.vgpu)) if page.vgpu[row].compute_percent}
        return bool(sharing) and any(
            page.session[row].id and page.session[row].vgpu in sharing
            for row in range(len(page.session))
        )

    def tell(self) -> int:
        """Adds one to `changed`; its address, which is a futex."""
        self._page.changed = (self._page.changed + 1) & 0xFFFFFFFF
        return ctypes.addressof(self._page) + Page.changed.offset
