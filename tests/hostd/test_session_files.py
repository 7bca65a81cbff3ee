"""Records on disk: whole or not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gpupool.hostd.adapters.session_files import SessionFiles
from gpupool.hostd.core.ports import PortError
from tests.hostd.test_session import SESSION


def test_saved_loaded_removed(tmp_path: Path) -> None:
    store = SessionFiles(tmp_path)
    others = [replace(SESSION, id=number) for number in (10, 2)]
    for session in (SESSION, *others):
        store.save(session)
    assert [session.id for session in SessionFiles(tmp_path).load()] == [2, 3, 10]
    store.remove(3)
    store.remove(3)
    assert [session.id for session in store.load()] == [2, 10]


def test_ids_go_on_after_a_restart(tmp_path: Path) -> None:
    assert [SessionFiles(tmp_path).next_id() for _ in range(3)] == [1, 2, 3]


def test_ids_without_their_file_start_above_what_runs(tmp_path: Path) -> None:
    store = SessionFiles(tmp_path)
    store.save(replace(SESSION, id=41))
    assert store.next_id() == 42


def test_a_damaged_id_file_is_an_error_not_a_guess(tmp_path: Path) -> None:
    store = SessionFiles(tmp_path)
    (tmp_path / "last-session-id").write_text("many")
    with pytest.raises(PortError, match="last-session-id"):
        store.next_id()


def test_a_half_written_file_is_no_record(tmp_path: Path) -> None:
    store = SessionFiles(tmp_path)
    (tmp_path / "sessions" / "5.new").write_text('{"id": 5')
    assert store.load() == []


def test_a_record_under_a_wrong_name(tmp_path: Path) -> None:
    store = SessionFiles(tmp_path)
    store.save(SESSION)
    (tmp_path / "sessions" / "3.json").rename(tmp_path / "sessions" / "4.json")
    assert store.load() == []
    assert (tmp_path / "sessions" / "4.unreadable").exists()


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    store = SessionFiles(tmp_path)
    (tmp_path / "sessions").rmdir()
    with pytest.raises(PortError, match="cannot write"):
        store.save(SESSION)
