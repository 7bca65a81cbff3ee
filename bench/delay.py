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
from collections.abc import Iterator
from dataclasses import dataclass

from gpupool.bench.host import helper

_EXCHANGES = 400
_WARM_UP = 50
_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Delayed:
    """A port behind which everything takes longer."""

    port: int
    wanted_us: int
    added_us: float  # as measured, median


def _serve_echo(listening: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed: the measurement is over
        while True:
            connection, _ = listening.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while byte := connection.recv(1):
                    connection.sendall(byte)


@contextlib.contextmanager
def _echo() -> Iterator[int]:
    """A server that gives every byte back; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_serve_echo, args=(listening,), daemon=True)
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


@contextlib.contextmanager
def delayed(port: int, wanted_us: int) -> Iterator[Delayed]:
    """A port that leads to `port` and adds `wanted_us` to each round trip."""
    with _echo() as echo:
        direct_us = round_trip_us(echo)

        def added_us(one_way_ns: int) -> float:
            with relay(echo, one_way_ns) as through:
                return round_trip_us(through) - direct_us

        plain_ns = int(wanted_us * 1000 / 2)
        # Its cost with this very delay: asleep for longer, threads wake up later.
        cost_ns = int((added_us(plain_ns) - wanted_us) * 1000 / 2)
        one_way_ns = max(0, plain_ns - cost_ns)
        really_us = added_us(one_way_ns)
    with relay(port, one_way_ns) as through:
        yield Delayed(through, wanted_us, really_us)
