"""The relay that stands for a long way: what it adds, and that it passes everything on."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from gpupool.bench import delay
from gpupool.bench.host import HostError, helper

_TIMEOUT_S = 30


@pytest.fixture(autouse=True)
def _relay_is_built() -> None:
    try:
        helper("gpupool-bench-relay")
    except HostError as error:
        pytest.skip(str(error))


@contextmanager
def served(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server for one connection; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(_TIMEOUT_S)

        def run() -> None:
            connection, _ = listening.accept()
            connection.settimeout(_TIMEOUT_S)
            with connection:
                serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(_TIMEOUT_S)
        assert not thread.is_alive()


def read_all(connection: socket.socket) -> bytes:
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def test_bytes_arrive_whole_and_the_end_of_one_direction_leaves_the_other() -> None:
    sent = os.urandom(20_000_000)

    def answer(connection: socket.socket) -> None:
        connection.sendall(hashlib.sha256(read_all(connection)).digest())

    with (
        served(answer) as port,
        delay.relay(port, 100_000) as through,
        socket.create_connection(("127.0.0.1", through), timeout=_TIMEOUT_S) as connection,
    ):
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == hashlib.sha256(sent).digest()


def test_each_way_takes_at_least_the_delay() -> None:
    """No upper bound: that would be an assertion about this machine's load."""

    def echo(connection: socket.socket) -> None:
        while byte := connection.recv(1):
            connection.sendall(byte)

    with served(echo) as port, delay.relay(port, 20_000_000) as through:
        took_us = []
        with socket.create_connection(("127.0.0.1", through), timeout=_TIMEOUT_S) as connection:
            for _ in range(5):
                begin = time.perf_counter()
                connection.sendall(b"x")
                assert connection.recv(1) == b"x"
                took_us.append((time.perf_counter() - begin) * 1e6)
    assert min(took_us) >= 40_000


def test_bytes_under_way_do_not_wait_for_each_other() -> None:
    """Fifty bytes sent one after the other at once, 50 ms a way: not fifty times the delay."""
    received: list[bytes] = []

    def take(connection: socket.socket) -> None:
        received.append(read_all(connection))

    with served(take) as port, delay.relay(port, 50_000_000) as through:
        begin = time.perf_counter()
        with socket.create_connection(("127.0.0.1", through), timeout=_TIMEOUT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number in range(50):
                connection.sendall(bytes([number]))
                time.sleep(0.0005)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        assert time.perf_counter() - begin < 50 * 0.05
    assert received == [bytes(range(50))]


def test_a_server_that_is_not_there_closes_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with (
        delay.relay(port, 0) as through,
        socket.create_connection(("127.0.0.1", through), timeout=_TIMEOUT_S) as connection,
    ):
        assert connection.recv(1) == b""
