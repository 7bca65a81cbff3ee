"""TCP connections that take longer: the relay of bench/native/relay.cpp, tuned by measurement.

netem would do, but containers seldom may use it, and the relay needs no privilege. Its own cost is
measured (a byte there and back, through it and without it) and taken off the delay it is given;
what was then really added is part of the report.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpupool.bench.host import helper

_EXCHANGES = 400
_WARM_UP = 50
_TURNS = 4  # of tuning
_TIMEOUT_S = 20.0
_PIECE_BYTES = 1 << 20
_PIECES = 256


@dataclass(frozen=True)
class Delayed:
    """A port behind which everything takes longer, and what was measured of it."""

    port: int
    wanted_us: int
    added_us: float  # to a round trip, median
    bandwidth_gb_s: float  # of one connection, 10^9 bytes a second
    direct_gb_s: float  # of one connection without the relay


def _echo(connection: socket.socket) -> None:
    """Gives every byte back."""
    while byte := connection.recv(1):
        connection.sendall(byte)


def _sink(connection: socket.socket) -> None:
    """Takes everything, then answers with a byte."""
    place = bytearray(_PIECE_BYTES)
    while connection.recv_into(place):
        pass
    connection.sendall(b"x")


@contextlib.contextmanager
def _serving(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server for one connection after the other; its port."""

    def accept() -> None:
        with contextlib.suppress(OSError):  # closed: the measurement is over
            while True:
                connection, _ = listening.accept()
                with connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        port: int = listening.getsockname()[1]
        yield port
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(_TIMEOUT_S)


def round_trip_us(port: int) -> float:
    """Of one byte to an echo server, the median."""
    times = []
    with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(_EXCHANGES):
            begin = time.perf_counter_ns()
            connection.sendall(b"x")
            if not connection.recv(1):
                raise RuntimeError("the relay closed its connection")
            times.append((time.perf_counter_ns() - begin) / 1e3)
    return statistics.median(times[_WARM_UP:])


def bandwidth_gb_s(port: int) -> float:
    """Of one connection to a sink."""
    piece = bytes(_PIECE_BYTES)
    with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S) as connection:
        begin = time.perf_counter()
        for _ in range(_PIECES):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        if not connection.recv(1):
            raise RuntimeError("the relay closed its connection")
        return _PIECES * _PIECE_BYTES / (time.perf_counter() - begin) / 1e9


@contextlib.contextmanager
def relay(port: int, one_way_ns: int) -> Iterator[int]:
    """A relay to a port of 127.0.0.1; the port that it listens on."""
    process = subprocess.Popen(  # noqa: S603 (our own program)
        [str(helper("gpupool-bench-relay")), "127.0.0.1", str(port), str(one_way_ns)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise RuntimeError(f"the relay did not start: exit code {process.wait(_TIMEOUT_S)}")
        yield int(line)
    finally:
        if process.stdin:
            process.stdin.close()
        process.wait(timeout=_TIMEOUT_S)


def _tuned(wanted_us: int) -> tuple[int, float]:
    """The delay to ask for, ns one way, and what it then adds to a round trip, us."""
    with _serving(_echo) as echo:
        direct_us = round_trip_us(echo)

        def added_us(one_way_ns: int) -> float:
            with relay(echo, one_way_ns) as through:
                return round_trip_us(through) - direct_us

        tried: list[tuple[int, float]] = []
        one_way_ns = int(wanted_us * 1000 / 2)
        # Its own cost depends on the delay: threads that sleep for longer wake up later.
        for _ in range(_TURNS):
            tried.append((one_way_ns, added_us(one_way_ns)))
            one_way_ns = max(0, one_way_ns - int((tried[-1][1] - wanted_us) * 1000 / 2))
        return min(tried, key=lambda one: abs(one[1] - wanted_us))


@contextlib.contextmanager
def delayed(port: int, wanted_us: int) -> Iterator[Delayed]:
    """A port that leads to `port` and adds `wanted_us` to each round trip."""
    one_way_ns, added_us = _tuned(wanted_us)
    with _serving(_sink) as sink:
        direct_gb_s = bandwidth_gb_s(sink)
        with relay(sink, one_way_ns) as through:
            relayed_gb_s = bandwidth_gb_s(through)
    with relay(port, one_way_ns) as through:
        yield Delayed(through, wanted_us, added_us, relayed_gb_s, direct_gb_s)
