"""The pieces of a virtual machine's window: one a session, which then has its ring and data there.
Sessions of OpenGL, whose bytes alone go through it, share the last piece: each has a slot of that.

Invariants: a piece belongs to one session at a time, from before its worker starts until after that
has ended, and is zeroed before the next one gets it. Which pieces are taken stands in the sessions'
own records, so a restart of hostd changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from gpupool.hostd.core.admission import MIB, Door
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.vm import vm_of_owner
from gpupool.hostd.log import fields
from gpupool.wire.hello import WINDOW_MIN_BYTES, Hello, SessionKind

log = logging.getLogger("gpupool.hostd")

_MOST_PIECES = 8  # of one window, so that those of a large one are large
_MOST_BITS = 64  # of an address
SLOT_BYTES = 4 * MIB  # kByteRingsBytes of wire/cpp/byte_rings.hpp


class VmWindows(Protocol):
    """The windows of virtual machines, by domain UUID."""

    def open(self, uuid: str, window_bytes: int, piece: Piece) -> int:
        """A descriptor of the whole file, in which the piece is zero now. Raises PortError, also
        for a file of another size.
        """
        ...

    def close(self, fd: int) -> None:
        """Closes hostd's copy."""
        ...

    def clear(self, uuid: str, piece: Piece) -> None:
        """Gives the piece's memory back. Raises PortError; no window is no error."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """Of a window."""

    offset_bytes: int
    size_bytes: int

    def meets(self, other: Piece) -> bool:
        """Whether they have memory in common."""
        end, other_end = self.offset_bytes + self.size_bytes, other.offset_bytes + other.size_bytes
        return self.offset_bytes < other_end and other.offset_bytes < end


@dataclass(frozen=True, slots=True)
class OpenPiece:
    """A piece that a session is about to get, with the window's descriptor."""

    piece: Piece
    fd: int


def piece_bytes(window_bytes: int) -> int:
    """How large each piece of such a window is."""
    return max(WINDOW_MIN_BYTES, window_bytes // _MOST_PIECES)


def free_piece(window_bytes: int, taken: Iterable[Piece]) -> Piece | None:
    """The first one that is; none is, in a window that is too small for any."""
    there = tuple(taken)
    size = piece_bytes(window_bytes)
    pieces = (Piece(start, size) for start in range(0, window_bytes - size + 1, size))
    return next((one for one in pieces if not any(one.meets(other) for other in there)), None)


def free_slot(window_bytes: int, taken: Iterable[Piece]) -> Piece | None:
    """The first one of the last piece, in a window that has another piece for CUDA."""
    there = tuple(taken)
    size = piece_bytes(window_bytes)
    if window_bytes < 2 * size:
        return None
    end = window_bytes - window_bytes % size
    slots = (Piece(start, SLOT_BYTES) for start in range(end - size, end, SLOT_BYTES))
    return next((one for one in slots if not any(one.meets(other) for other in there)), None)


def piece_of(session: Session) -> Piece | None:
    """The piece that a session has."""
    if not session.window_bytes:
        return None
    return Piece(session.window_offset, session.window_bytes)


def take_piece(
    windows: VmWindows, hello: Hello, door: Door, sessions: Iterable[Session]
) -> OpenPiece | None:
    """A piece, or a slot of OpenGL's, for a client that can map its virtual machine's window; None,
    and logged: its data goes through vsock.
    """
    if not hello.window_bits:
        return None
    opengl = hello.kind == SessionKind.OPENGL
    window_bytes = door.window_mib * MIB
    mine = [one for one in sessions if door.vm and vm_of_owner(one.owner) == door.vm]
    taken = [piece for piece in map(piece_of, mine) if piece is not None]
    piece = (free_slot if opengl else free_piece)(window_bytes, taken)
    if hello.window_bits >= _MOST_BITS or 1 << hello.window_bits != window_bytes:
        why = (
            f"the guest says that its window has 2^{hello.window_bits} bytes; it has "
            f"{window_bytes} (a new start of the domain brings both together)"
        )
    elif window_bytes < WINDOW_MIN_BYTES:
        why = (
            f"a window of {door.window_mib} MiB is too small for a session, which needs "
            f"{WINDOW_MIN_BYTES // MIB} (gpupool vm attach --window)"
        )
    elif piece is None and opengl and window_bytes < 2 * piece_bytes(window_bytes):
        why = "OpenGL has a part of a window of two sessions or more (gpupool vm attach --window)"
    elif piece is None:
        why = f"{len(taken)} sessions have all of it (gpupool vm attach --window: a larger one)"
    else:
        try:
            return OpenPiece(piece, windows.open(door.vm, window_bytes, piece))
        except PortError as error:
            why = str(error)
    facts = {"vm": door.vm, "program": hello.program, "reason": why}
    log.warning("session without a piece of its window, over vsock", extra=fields(facts))
    return None


def free_again(windows: VmWindows, session: Session) -> None:
    """The session has ended. A piece that cannot be cleared now is before it is given out."""
    piece = piece_of(session)
    if piece is None:
        return
    uuid = vm_of_owner(session.owner)
    try:
        windows.clear(uuid, piece)
    except PortError as error:
        facts = {"vm": uuid, "session": session.id, "error": str(error)}
        log.error("piece of a window not cleared", extra=fields(facts))
