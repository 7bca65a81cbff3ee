"""The layout of a vGPU's account page: the Python twin of hostd/pages/account_page.hpp.

`tests/hostd/test_pages.py` compiles the header and compares. hostd reads and writes the file and
never maps it: a worker that a client has taken over could cut it short.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from gpupool.hostd.core.ports import AccountUse

BYTES = 16384
MAGIC = 0x4E554F43  # "COUN"
VERSION = 1
ROWS = 128
ROW_BYTES = 64
FIRST_ROW = 64
ROW_FIELDS = (("session", "Q"), ("bytes", "Q"), ("overhead_bytes", "Q"))
HEADER = struct.Struct("<II")
# Of one session, far above any context: a worker that a client has taken over cannot make a GPU
# look full to others by what it writes here.
MOST_OVERHEAD_BYTES = 4 << 30
_ROW = struct.Struct("<" + "".join(code for _, code in ROW_FIELDS))


def row(session_id: int) -> bytes:
    """A fresh row."""
    return _ROW.pack(session_id, 0, 0).ljust(ROW_BYTES, b"\0")


def row_at(number: int) -> int:
    """Where a row is."""
    return FIRST_ROW + number * ROW_BYTES


def overhead_at(number: int) -> int:
    """Where the overhead of a row is."""
    return row_at(number) + 16


def sessions(raw: bytes) -> dict[int, int]:
    """Which session has which row, by row. Nothing for bytes that are no whole page."""
    if len(raw) < BYTES or not _is_page(raw):
        return {}
    found = ((number, _ROW.unpack_from(raw, row_at(number))[0]) for number in range(ROWS))
    return {number: session_id for number, session_id in found if session_id}


def use(raw: bytes, rows: Iterable[int]) -> AccountUse:
    """The sum of these rows, as far as `raw`, the beginning of a page, has them."""
    memory_bytes = overhead_bytes = 0
    if _is_page(raw):
        for at in map(row_at, rows):
            if at + _ROW.size <= len(raw):
                _, used, overhead = _ROW.unpack_from(raw, at)
                memory_bytes += used
                overhead_bytes += min(overhead, MOST_OVERHEAD_BYTES)
    return AccountUse(memory_bytes, overhead_bytes)


def _is_page(raw: bytes) -> bool:
    return len(raw) >= HEADER.size and HEADER.unpack_from(raw) == (MAGIC, VERSION)
