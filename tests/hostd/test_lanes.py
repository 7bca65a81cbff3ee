"""Further connections: held for their session, and for nobody and nothing else."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gpupool.hostd.api.lanes import PendingLanes
from gpupool.hostd.core.admission import Refusal
from gpupool.wire.hello import MAX_LANES, LaneHello, WelcomeStatus
from tests.fakes.daemon import TCP_HELLO, Daemon, connect, eventually, receive

NONCE = bytes(range(16))
OTHER = bytes(16)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a test's coroutine with a bound."""
    asyncio.run(asyncio.wait_for(work, 20))


class Ends:
    """Connected pairs: what the desk holds, and what the client sees."""

    def __init__(self) -> None:
        self.clients: list[socket.socket] = []

    def new(self) -> socket.socket:
        """The held end of a new pair."""
        held, client = socket.socketpair()
        client.setblocking(False)
        self.clients.append(client)
        return held

    def closed(self, place: int) -> bool:
        """Whether the held end of a pair is closed."""
        try:
            return self.clients[place].recv(1) == b""
        except BlockingIOError:
            return False


def lane(index: int, nonce: bytes = NONCE) -> LaneHello:
    return LaneHello(index=index, nonce=nonce)


def test_lanes_are_handed_out_in_order_and_once() -> None:
    async def work() -> None:
        desk, ends = PendingLanes(5), Ends()
        held = [ends.new(), ends.new(), ends.new()]
        for index in (2, 0, 1):
            assert desk.add(lane(index), "me", held[index]) is None
        assert await desk.collect(NONCE, "me", 3) == tuple(held)
        assert desk.held == 0
        again = await PendingLanes(0.05).collect(NONCE, "me", 1)
        assert isinstance(again, Refusal)

    run(work())


def test_a_lane_may_come_after_its_hello() -> None:
    async def work() -> None:
        desk, ends = PendingLanes(5), Ends()
        waiting = asyncio.ensure_future(desk.collect(NONCE, "me", 1))
        await asyncio.sleep(0.05)
        late = ends.new()
        assert desk.add(lane(0), "me", late) is None
        assert await waiting == (late,)

    run(work())


@pytest.mark.parametrize(("nonce", "owner"), [(OTHER, "me"), (NONCE, "somebody else")])
def test_a_stranger_gets_none(nonce: bytes, owner: str) -> None:
    async def work() -> None:
        desk, ends = PendingLanes(0.2), Ends()
        assert desk.add(lane(0), "me", ends.new()) is None
        answer = await desk.collect(nonce, owner, 1)
        assert isinstance(answer, Refusal)
        assert "only 0 of 1 further connections came within 0.2 s" in answer.text

    run(work())


def test_lanes_without_a_session_are_closed_in_time() -> None:
    async def work() -> None:
        desk, ends = PendingLanes(0.1), Ends()
        for index in range(3):
            assert desk.add(lane(index), "me", ends.new()) is None
        assert desk.held == 3
        await asyncio.sleep(0.3)
        assert desk.held == 0
        assert all(ends.closed(place) for place in range(3))

    run(work())


def test_lanes_of_a_session_that_is_refused_are_closed() -> None:
    async def work() -> None:
        desk, ends = PendingLanes(5), Ends()
        assert desk.add(lane(0), "me", ends.new()) is None
        answer = await asyncio.wait_for(PendingLanes(0.05).collect(NONCE, "me", 1), 5)
        assert isinstance(answer, Refusal)
        desk.discard(NONCE, "me")
        assert ends.closed(0)
        assert desk.held == 0

    run(work())


def test_those_that_came_in_vain_are_closed() -> None:
    async def work() -> None:
        desk, ends = PendingLanes(0.1), Ends()
        assert desk.add(lane(0), "me", ends.new()) is None
        assert isinstance(await desk.collect(NONCE, "me", 2), Refusal)
        assert ends.closed(0)
        assert desk.held == 0

    run(work())


def test_their_number_is_bounded_for_a_peer_and_in_all() -> None:
    async def work() -> None:
        desk, ends = PendingLanes(5, most=5, most_of_a_peer=3), Ends()
        answers = [desk.add(lane(index), "me", ends.new()) for index in range(4)]
        assert [answer is None for answer in answers] == [True] * 3 + [False]
        assert answers[3] is not None
        assert answers[3].status is WelcomeStatus.LIMIT
        answers = [desk.add(lane(index), "you", ends.new()) for index in range(3)]
        assert [answer is None for answer in answers] == [True, True, False]
        desk.close()
        assert desk.held == 0

    run(work())


@pytest.mark.parametrize("index", [0, MAX_LANES, 2**32 - 1])
def test_a_place_that_is_taken_or_is_none(index: int) -> None:
    async def work() -> None:
        desk, ends = PendingLanes(5), Ends()
        assert desk.add(lane(0), "me", ends.new()) is None
        answer = desk.add(lane(index), "me", ends.new())
        assert answer is not None
        assert answer.status is WelcomeStatus.BAD_REQUEST
        desk.close()

    run(work())


# hostd as a process.


def open_lanes(daemon: Daemon, count: int, **changes: Any) -> list[socket.socket]:
    """Further connections, as a client opens them."""
    token = daemon.token_file.read_bytes().strip()
    opened = []
    for index in range(count):
        message = replace(LaneHello(index=index, nonce=NONCE, token=token), **changes)
        opened.append(connect(daemon.tcp))
        opened[-1].sendall(message.encode())
    return opened


@pytest.mark.parametrize("connections", [1, 3])
def test_a_worker_gets_its_lanes(daemon: Daemon, connections: int) -> None:
    daemon.start(f"[limits]\nconnections = {connections}")
    lanes = open_lanes(daemon, 4)
    hello = replace(TCP_HELLO, token=daemon.token_file.read_bytes().strip(), nonce=NONCE, lanes=4)
    connection = connect(daemon.tcp)
    connection.sendall(hello.encode())
    answer = receive(connection)
    assert answer.welcome.status is WelcomeStatus.OK, answer.welcome.text
    worker = daemon.sessions()[0]["worker_pid"]
    words = Path(f"/proc/{worker}/cmdline").read_text().split("\0")
    fds = [value for name, value in pairwise(words) if name == "--lane-fd"]
    assert len(fds) == connections - 1  # the limit counts the first one, too
    assert words[words.index("--asked-lanes") + 1] == "4"
    for fd in fds:
        assert str(Path(f"/proc/{worker}/fd/{fd}").readlink()).startswith("socket:")
    for unused in lanes[connections - 1 :]:
        assert unused.recv(1) == b""
    assert daemon.process is not None
    held = os.listdir(f"/proc/{daemon.process.pid}/fd")  # noqa: PTH208 (procfs)
    answer.close()
    eventually(lambda: not daemon.sessions(), "the session ends with its client")
    assert len(held) < 40  # hostd has let go of them: they end with the worker


def test_lanes_that_never_come(daemon: Daemon) -> None:
    daemon.start("[limits]\nhello_timeout_s = 1")
    open_lanes(daemon, 1)
    hello = replace(TCP_HELLO, token=daemon.token_file.read_bytes().strip(), nonce=NONCE, lanes=3)
    connection = connect(daemon.tcp)
    connection.sendall(hello.encode())
    answer = receive(connection)
    assert answer.welcome.status is WelcomeStatus.BAD_REQUEST
    assert "only 1 of 3 further connections came within 1 s" in answer.welcome.text
    assert daemon.sessions() == []


def test_a_lane_needs_the_token(daemon: Daemon) -> None:
    daemon.start()
    (refused,) = open_lanes(daemon, 1, token=b"wrong")
    assert receive(refused).welcome.status is WelcomeStatus.TOKEN
    assert refused.recv(1) == b""
    hello = replace(TCP_HELLO, nonce=NONCE, lanes=1)
    connection = connect(daemon.tcp)
    connection.sendall(hello.encode())
    assert receive(connection).welcome.status is WelcomeStatus.TOKEN  # at once, without waiting


def test_a_client_of_the_version_before_is_served(daemon: Daemon) -> None:
    daemon.start()
    token = daemon.token_file.read_bytes().strip()
    connection = connect(daemon.tcp)
    connection.sendall(replace(TCP_HELLO, protocol_minor=1, token=token).encode())
    answer = receive(connection)
    assert answer.welcome.status is WelcomeStatus.OK
    answer.close()
