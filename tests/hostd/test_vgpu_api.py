"""vGPUs through a real hostd: the admin API, the line of those who wait, and restarts."""

from __future__ import annotations

import contextlib
import select
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpupool.cli import admin
from gpupool.cli.admin import AdminError
from gpupool.hostd.adapters import quota_page
from gpupool.wire.hello import Hello, Welcome, WelcomeStatus
from tests.fakes.daemon import HELLO, Answer, Daemon, connect, eventually, receive, say


def call(daemon: Daemon, method: str, **more: Any) -> dict[str, Any]:
    """A request to the admin API."""
    return admin.call(daemon.admin_socket, method, **more)


def hello(percent: int = 0, **more: Any) -> Hello:
    """One that asks for a share."""
    return replace(HELLO, compute_percent=percent, **more)


def let_in(daemon: Daemon, asking: Hello) -> Answer:
    """A client that was."""
    answer = say(daemon.unix, asking.encode())
    assert answer.welcome.status is WelcomeStatus.OK, answer.welcome.text
    return answer


def rows(daemon: Daemon) -> list[tuple[int, int]]:
    """Number and share of each vGPU in the quota page of the one GPU."""
    pages = [
        quota_page.Page.from_buffer_copy(path.read_bytes())
        for path in (daemon.folder / "state" / "gpus").glob("*/quota")
    ]
    return [(row.id, row.compute_percent) for page in pages for row in page.vgpu if row.id]


def test_a_named_vgpu(daemon: Daemon) -> None:
    daemon.start()
    made = call(daemon, "vgpu_create", name="trainer", compute_percent=30, memory_mib=64)["vgpu"]
    assert made == {
        "id": 1,
        "name": "trainer",
        "mode": "on-demand",
        "compute_percent": 30,
        "memory_mib": 64,
        "policy": "elastic",
        "priority": 5,
        "users": [],
        "gpu": "",
        "origin": "",
        "vm": "",
        "sessions": [],
        "used_mib": 0,
        "overhead_mib": 0,
    }
    assert rows(daemon) == []
    answers = [let_in(daemon, hello(vgpu="trainer")) for _ in range(2)]
    assert rows(daemon) == [(1, 30)]
    shown = call(daemon, "vgpu_show", vgpu=1)["vgpu"]
    assert shown["sessions"] == [answer.welcome.session_id for answer in answers]
    assert call(daemon, "vgpu_list")["gpus"][0]["left_percent"] == 70
    assert call(daemon, "vgpu_resize", vgpu="trainer", compute_percent=45)["vgpu"] == {
        **shown,
        "compute_percent": 45,
    }
    assert rows(daemon) == [(1, 45)]
    assert [session["vgpu"] for session in daemon.sessions()] == ["trainer"] * 2
    with pytest.raises(AdminError, match="is used by session"):
        call(daemon, "vgpu_delete", vgpu="trainer")
    for answer in answers:
        answer.close()
    eventually(lambda: rows(daemon) == [], "the row is free")
    assert call(daemon, "vgpu_delete", vgpu="trainer") == {"ended": []}
    assert call(daemon, "vgpu_list")["vgpus"] == []


@pytest.mark.parametrize(
    ("method", "more", "text"),
    [
        ("vgpu_create", {}, "vGPU name ''"),
        ("vgpu_create", {"name": 5}, "name: given 5"),
        ("vgpu_create", {"name": "a", "compute_percent": "5"}, "compute_percent: given '5'"),
        ("vgpu_create", {"name": "a", "mode": "often"}, "allowed is reserved or on-demand"),
        ("vgpu_create", {"name": "a", "users": ["root"]}, "users: given"),
        ("vgpu_create", {"name": "a", "colour": 1}, "unknown: colour"),
        ("vgpu_create", {"name": "a", "policy": "hard"}, "without a compute share"),
        ("vgpu_show", {"vgpu": "a"}, "there is no vGPU 'a'"),
        ("vgpu_show", {}, "vgpu: given None"),
        ("vgpu_resize", {"vgpu": 3}, "there is no vGPU 3"),
        ("vgpu_delete", {"vgpu": [1]}, "needed is a name or a number"),
    ],
)
def test_a_bad_request(daemon: Daemon, method: str, more: dict[str, Any], text: str) -> None:
    daemon.start()
    with pytest.raises(AdminError, match=text):
        call(daemon, method, **more)


def test_named_ones_survive_a_kill_and_a_reboot(daemon: Daemon) -> None:
    daemon.start()
    call(daemon, "vgpu_create", name="kept", compute_percent=30, mode="reserved", policy="hard")
    call(daemon, "vgpu_create", name="used", compute_percent=20)
    answer = let_in(daemon, hello(vgpu="used"))
    before = call(daemon, "vgpu_list")["vgpus"]
    daemon.stop(kill=True)
    daemon.start()
    assert call(daemon, "vgpu_list")["vgpus"] == before
    assert sorted(rows(daemon)) == [(1, 30), (2, 20)]
    answer.close()
    eventually(lambda: rows(daemon) == [(1, 30)], "the session has ended")
    daemon.stop()
    (daemon.folder / "state").rename(daemon.folder / "gone")  # as a reboot empties it
    daemon.start()
    assert rows(daemon) == [(1, 30)]
    assert [one["sessions"] for one in call(daemon, "vgpu_list")["vgpus"]] == [[], []]
    assert let_in(daemon, hello(vgpu="used")).welcome.status is WelcomeStatus.OK


def test_a_refusal_says_what_is_left(daemon: Daemon) -> None:
    daemon.start()
    holder = let_in(daemon, hello(60))
    before_s = time.monotonic()
    refused = say(daemon.unix, hello(41).encode()).welcome
    assert refused.status is WelcomeStatus.LIMIT
    assert "41% compute was asked for; left is GPU-" in refused.text
    assert ": 40% and " in refused.text
    assert time.monotonic() - before_s > 2  # it was given a moment
    assert call(daemon, "vgpu_list")["waiting"] == []
    holder.close()


def test_a_program_run_again_at_once_finds_room(daemon: Daemon) -> None:
    """Its predecessor's worker has not ended when it comes."""
    daemon.start()
    for _ in range(3):
        let_in(daemon, hello(100)).close()


def wait_for_room(daemon: Daemon, asking: Hello) -> Answer:
    """A client that was told that it waits."""
    answer = say(daemon.unix, asking.encode())
    assert answer.welcome.status is WelcomeStatus.WAITING
    return answer


def test_clients_wait_in_their_order(daemon: Daemon) -> None:
    daemon.start()
    holder = let_in(daemon, hello(100))
    first = wait_for_room(daemon, hello(60, wait_s=60, program="first"))
    assert first.welcome.text == "waiting for room on a GPU, for up to 60 s: place 1 of 1"
    second = wait_for_room(daemon, hello(60, wait_s=60))
    third = wait_for_room(daemon, hello(60, wait_s=60))
    assert third.welcome.text.endswith("place 3 of 3")
    waiting = call(daemon, "vgpu_list")["waiting"]
    assert (waiting[0]["position"], waiting[0]["program"]) == (1, "first")
    let_in(daemon, hello()).close()  # who needs no room does not wait
    second.close()  # leaves nothing
    eventually(lambda: len(call(daemon, "vgpu_list")["waiting"]) == 2, "the second has left")
    assert last_word(third) == "place 2 of 2"
    holder.close()
    entered = answer_of(first)
    assert entered.welcome.status is WelcomeStatus.OK
    assert call(daemon, "vgpu_list")["waiting"][0]["position"] == 1
    assert last_word(third).endswith("place 1 of 1")
    call(daemon, "vgpu_resize", vgpu=vgpu_of(daemon, entered), compute_percent=40)
    assert answer_of(third).welcome.status is WelcomeStatus.OK  # a resize made room
    assert call(daemon, "vgpu_list")["waiting"] == []


def vgpu_of(daemon: Daemon, answer: Answer) -> int:
    """The number of a session's vGPU."""
    sessions = {one["id"]: one for one in daemon.sessions()}
    return int(sessions[answer.welcome.session_id]["seats"][0]["vgpu"])


def last_word(answer: Answer) -> str:
    """The place that a waiting client was told last."""
    text = ""
    while select.select([answer.connection], [], [], 0.5 if text else 10)[0]:
        said = receive(answer.connection).welcome
        assert said.status is WelcomeStatus.WAITING
        text = said.text.rpartition(": ")[2]
    return text


def answer_of(waiting: Answer) -> Answer:
    """The last word, after all about waiting."""
    while True:
        answer = receive(waiting.connection)
        if answer.welcome.status is not WelcomeStatus.WAITING:
            return answer


def test_many_at_once_are_never_too_many(daemon: Daemon) -> None:
    daemon.start()

    def come(wait_s: int) -> Answer:
        answer = say(daemon.unix, hello(30, wait_s=wait_s).encode())
        return answer_of(answer) if answer.welcome.status is WelcomeStatus.WAITING else answer

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(come, [0] * 16))
        let = [one for one in answers if one.welcome.status is WelcomeStatus.OK]
        assert len(let) == 3
        assert sum(percent for _, percent in rows(daemon)) == 90
        for answer in answers:
            answer.close()

        def use(_: int) -> int:
            answer = come(100)
            held = sum(percent for _, percent in rows(daemon))
            answer.close()
            return held if answer.welcome.status is WelcomeStatus.OK else 1000

        assert all(0 < held <= 90 for held in pool.map(use, range(24)))
    eventually(lambda: rows(daemon) == [], "all rows to be free")


def test_a_hostd_killed_while_clients_come_and_go(daemon: Daemon) -> None:
    """At moments that nobody chose; `test_vgpu_crashes` has every step."""
    daemon.start()
    state = daemon.folder / "state"

    def come(number: int) -> Answer | None:
        asking = hello(20, wait_s=60 * (number % 2))
        with contextlib.suppress(OSError, AssertionError):  # hostd went meanwhile
            return say(daemon.unix, asking.encode())
        return None

    with ThreadPoolExecutor(8) as pool:
        for delay_s in (0.0, 0.01, 0.03, 0.1):
            coming = [pool.submit(come, number) for number in range(8)]
            time.sleep(delay_s)
            daemon.stop(kill=True)
            answers = [one.result(timeout=60) for one in coming]
            daemon.start()
            assert sum(percent for _, percent in rows(daemon)) <= 100
            living = {session["id"] for session in daemon.sessions()}
            assert {int(lease.stem) for lease in state.glob("gpus/*/*.lease")} <= living
            for answer in answers:
                if answer is not None:
                    answer.close()
            eventually(lambda: not daemon.sessions(), "the sessions to end")
            assert rows(daemon) == []
            assert list(state.glob("vgpus/*")) == list(state.glob("gpus/*/*.lease")) == []


def test_waiting_ends(daemon: Daemon) -> None:
    daemon.start("[limits]\nqueue_s = 4")
    holder = let_in(daemon, hello(100))
    waiting = wait_for_room(daemon, hello(60, wait_s=3600))
    assert "for up to 4 s" in waiting.welcome.text
    refused = answer_of(waiting).welcome
    assert refused.status is WelcomeStatus.LIMIT
    assert refused.text.startswith("no room within 4 s: 60% compute was asked for")
    holder.close()


def test_who_waits_has_nothing_to_say(daemon: Daemon) -> None:
    daemon.start()
    holder = let_in(daemon, hello(100))
    waiting = wait_for_room(daemon, hello(60, wait_s=3600))
    waiting.connection.sendall(b"x" * 100)
    with contextlib.suppress(ConnectionResetError):
        assert waiting.connection.recv(1) == b""
    assert call(daemon, "vgpu_list")["waiting"] == []
    holder.close()


def test_a_killed_hostd_lets_waiting_clients_go(daemon: Daemon) -> None:
    daemon.start()
    holder = let_in(daemon, hello(100))
    waiting = wait_for_room(daemon, hello(60, wait_s=3600))
    daemon.stop(kill=True)
    assert waiting.connection.recv(1) == b""
    daemon.start()
    assert call(daemon, "vgpu_list")["waiting"] == []
    assert len(daemon.sessions()) == 1
    holder.close()


def test_a_client_of_the_version_before_never_waits(daemon: Daemon) -> None:
    """It knows no such answer."""
    daemon.start()
    holder = let_in(daemon, hello(100))
    old = replace(hello(60, wait_s=60), protocol_minor=1)
    connection = connect(daemon.unix)
    connection.sendall(old.encode())
    assert receive(connection).welcome.status is WelcomeStatus.LIMIT
    holder.close()


def test_a_dead_worker_leaves_no_row(daemon: Daemon) -> None:
    daemon.start()
    answer = let_in(daemon, hello(50))
    worker = daemon.sessions()[0]["worker_pid"]
    state = daemon.folder / "state"
    assert list(state.glob("vgpus/*")) != []
    assert list(state.glob("gpus/*/*.lease")) != []
    call(daemon, "end", session=answer.welcome.session_id, kill=True)
    eventually(lambda: not Path(f"/proc/{worker}").exists(), "the worker is gone")
    eventually(lambda: rows(daemon) == [], "its row is free")
    assert list(state.glob("vgpus/*")) == list(state.glob("gpus/*/*.lease")) == []
    assert isinstance(answer.welcome, Welcome)
