"""Pieces of virtual machines' windows: who gets which, and that they are zero."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.hostd.adapters.vm_windows import VmWindows
from gpupool.hostd.core.admission import Door
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.session import Session, SessionState
from gpupool.hostd.core.vm import owner_of_vm
from gpupool.hostd.core.window import (
    SLOT_BYTES,
    Piece,
    free_again,
    free_piece,
    piece_bytes,
    piece_of,
    take_piece,
)
from gpupool.wire.hello import Hello, SessionKind, TransportKind
from tests.fakes.windows import FakeVmWindows
from tests.hostd.test_host import HELLO

MIB = 1 << 20
VM = "2fe20f45-15dc-48bf-8271-c2bcd2e6b34c"
OTHER = "0de1a7c1-2ad1-4c5d-8a34-5a0f4e3d8f11"
GL_HELLO = replace(HELLO, kind=SessionKind.OPENGL, window_bits=27)
ANY_DOOR = Door("unix:/x", frozenset(TransportKind), b"", vm=VM, window_mib=128)


def session(number: int, piece: Piece | None, vm: str = VM) -> Session:
    """One that runs in that VM."""
    where = (piece.offset_bytes, piece.size_bytes) if piece is not None else (0, 0)
    return Session(
        number,
        *(SessionState.RUNNING, "python", 5, -1, "0.1.0", "window", "unix:/x", ()),
        *(0, 0, "2026-11-23T14:01:02Z"),
        owner=owner_of_vm(vm),
        window_offset=where[0],
        window_bytes=where[1],
    )


@pytest.mark.parametrize(
    ("window_mib", "pieces", "each_mib"),
    [(0, 0, 64), (32, 0, 64), (64, 1, 64), (256, 4, 64), (512, 8, 64), (4096, 8, 512)],
)
def test_sizes(window_mib: int, pieces: int, each_mib: int) -> None:
    taken: list[Piece] = []
    while (one := free_piece(window_mib * MIB, taken)) is not None:
        taken.append(one)
    assert len(taken) == pieces
    assert piece_bytes(window_mib * MIB) == each_mib * MIB


@given(st.integers(6, 13), st.lists(st.tuples(st.integers(0, 200), st.integers(1, 200))))
def test_no_piece_meets_another_or_the_end(bits: int, taken: list[tuple[int, int]]) -> None:
    there = [Piece(offset * 16 * MIB, size * 16 * MIB) for offset, size in taken]
    window = MIB << bits
    one = free_piece(window, there)
    if one is not None:
        assert one.offset_bytes + one.size_bytes <= window
        for other in there:
            both = range(
                max(one.offset_bytes, other.offset_bytes),
                min(one.offset_bytes + one.size_bytes, other.offset_bytes + other.size_bytes),
            )
            assert not both


def test_a_session_gets_a_piece_and_gives_it_back() -> None:
    windows = FakeVmWindows()
    hello = replace(HELLO, window_bits=27)
    sessions: list[Session] = []
    for number in range(2):
        opened = take_piece(windows, hello, ANY_DOOR, sessions)
        assert opened is not None
        assert windows.opened.pop(opened.fd) == (VM, opened.piece)
        sessions.append(session(number, opened.piece))
    assert [piece_of(one) for one in sessions] == [Piece(0, 64 * MIB), Piece(64 * MIB, 64 * MIB)]
    assert take_piece(windows, hello, ANY_DOOR, sessions) is None
    # Another VM's sessions have pieces of another window.
    other = replace(ANY_DOOR, vm=OTHER)
    assert take_piece(windows, hello, other, sessions) is not None
    free_again(windows, sessions[0])
    free_again(windows, session(7, None))
    assert windows.cleared == [(VM, Piece(0, 64 * MIB))]
    opened = take_piece(windows, hello, ANY_DOOR, sessions[1:])
    assert opened is not None
    assert opened.piece == Piece(0, 64 * MIB)


def test_sessions_of_opengl_share_the_last_piece() -> None:
    windows, sessions = FakeVmWindows(), list[Session]()
    cuda = replace(HELLO, window_bits=27)
    for number in range(64 * MIB // SLOT_BYTES):
        opened = take_piece(windows, GL_HELLO, ANY_DOOR, sessions)
        assert opened is not None
        assert opened.piece == Piece(64 * MIB + number * SLOT_BYTES, SLOT_BYTES)
        sessions.append(session(number, opened.piece))
    assert take_piece(windows, GL_HELLO, ANY_DOOR, sessions) is None
    # The other one is CUDA's, and as long as a slot is taken CUDA has no other.
    opened = take_piece(windows, cuda, ANY_DOOR, sessions)
    assert opened is not None
    assert opened.piece == Piece(0, 64 * MIB)
    sessions.append(session(100, opened.piece))
    assert take_piece(windows, cuda, ANY_DOOR, sessions) is None
    opened = take_piece(windows, GL_HELLO, ANY_DOOR, sessions[1:])
    assert opened is not None
    assert opened.piece == Piece(64 * MIB, SLOT_BYTES)
    # Where CUDA has all of it there is no slot.
    both = [session(0, Piece(0, 64 * MIB)), session(1, Piece(64 * MIB, 64 * MIB))]
    assert take_piece(windows, GL_HELLO, ANY_DOOR, both) is None


def test_a_record_says_which_piece_is_taken() -> None:
    one = session(3, Piece(64 * MIB, 64 * MIB))
    assert Session.from_dict(one.as_dict()) == one
    older = {key: value for key, value in one.as_dict().items() if not key.startswith("window")}
    assert piece_of(Session.from_dict(older)) is None


@pytest.mark.parametrize(
    ("door", "hello"),
    [
        (ANY_DOOR, replace(HELLO, window_bits=0)),
        (ANY_DOOR, replace(HELLO, window_bits=28)),
        (ANY_DOOR, replace(HELLO, window_bits=0xFFFF)),
        (replace(ANY_DOOR, window_mib=64), replace(GL_HELLO, window_bits=26)),
        (replace(ANY_DOOR, vm="", window_mib=0), replace(HELLO, window_bits=27)),
        (replace(ANY_DOOR, window_mib=0), replace(HELLO, window_bits=27)),
        (replace(ANY_DOOR, window_mib=32), replace(HELLO, window_bits=25)),
    ],
)
def test_without_a_piece(door: Door, hello: Hello) -> None:
    windows = FakeVmWindows()
    assert take_piece(windows, hello, door, ()) is None
    assert windows.made == 0


def test_a_window_that_cannot_be_opened(caplog: pytest.LogCaptureFixture) -> None:
    windows = FakeVmWindows()
    windows.fail = "it is gone"
    assert take_piece(windows, replace(HELLO, window_bits=27), ANY_DOOR, ()) is None
    free_again(windows, session(1, Piece(0, 64 * MIB)))  # is cleared before it is given out
    assert "it is gone" in str(caplog.records[0].__dict__)


def file_of(folder: Path, uuid: str, mib: int) -> Path:
    """A window full of ones."""
    path = folder / f"gpupool-{uuid}"
    path.write_bytes(b"\1" * (mib * MIB))
    return path


def test_pieces_are_zeroed(tmp_path: Path) -> None:
    path = file_of(tmp_path, VM, 3)
    other = file_of(tmp_path, OTHER, 1)
    windows = VmWindows(lambda uuid: tmp_path / f"gpupool-{uuid}")
    fd = windows.open(VM, 3 * MIB, Piece(MIB, MIB))
    assert not os.get_inheritable(fd)
    windows.close(fd)
    assert path.read_bytes() == b"\1" * MIB + bytes(MIB) + b"\1" * MIB
    windows.clear(VM, Piece(2 * MIB, MIB))
    assert path.read_bytes() == b"\1" * MIB + bytes(2 * MIB)
    assert other.read_bytes() == b"\1" * MIB
    path.unlink()
    windows.clear(VM, Piece(0, MIB))  # released meanwhile
    with pytest.raises(PortError, match="No such file"):
        windows.open(VM, 3 * MIB, Piece(0, MIB))


def test_files_that_are_no_windows(tmp_path: Path) -> None:
    windows = VmWindows(lambda uuid: tmp_path / f"gpupool-{uuid}")
    path = file_of(tmp_path, VM, 2)
    with pytest.raises(PortError, match="2097152 bytes and should have 1048576"):
        windows.open(VM, MIB, Piece(0, MIB))
    link = tmp_path / f"gpupool-{OTHER}"
    link.symlink_to(path)
    with pytest.raises(PortError, match="symbolic links"):
        windows.open(OTHER, 2 * MIB, Piece(0, MIB))
    with pytest.raises(PortError, match="symbolic links"):
        windows.clear(OTHER, Piece(0, MIB))
    link.unlink()
    os.mkfifo(link)
    with pytest.raises(PortError, match="no file of hostd's"):
        windows.clear(OTHER, Piece(0, MIB))
    assert path.read_bytes() == b"\1" * (2 * MIB)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
        with pytest.raises(PortError, match="owner 65534"):
            windows.open(VM, 2 * MIB, Piece(0, MIB))
