"""The exchange between workers of one tenant, over real sockets."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from gpupool.hostd.adapters.exchange import (
    DROP,
    FULL,
    GET,
    MAGIC,
    MESSAGE,
    OK,
    PUT,
    UNKNOWN,
    TenantExchange,
)

NONE = bytes(16)


class Worker:
    """The other end, as a worker has it."""

    def __init__(self, exchange: TenantExchange, session_id: int, tenant: str) -> None:
        self.connection = socket.socket(fileno=exchange.join(session_id, tenant))
        self.connection.setblocking(False)
        self.sequence = 0

    async def ask(
        self,
        operation: int,
        token: bytes,
        kind: int = 1,
        payload: bytes = b"",
        fd: int | None = None,
    ) -> tuple[int, bytes, bytes, int | None]:
        """Status, token, payload and descriptor."""
        self.sequence += 1
        message = MESSAGE.pack(MAGIC, operation, self.sequence, token, kind, len(payload), payload)
        socket.send_fds(self.connection, [message], [] if fd is None else [fd])
        data, fds = await self.receive()
        magic, status, sequence, token, _, size, payload = MESSAGE.unpack(data)
        assert (magic, sequence) == (MAGIC, self.sequence)
        return status, token, payload[:size], fds[0] if fds else None

    async def receive(self) -> tuple[bytes, list[int]]:
        """One message, or b"" at the end."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.connection, arrived.set)
        try:
            await asyncio.wait_for(arrived.wait(), 5)
        finally:
            loop.remove_reader(self.connection)
        data, fds, _, _ = socket.recv_fds(self.connection, 4096, 4)
        return data, fds


def open_files() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def run(test: Callable[[TenantExchange], Awaitable[None]]) -> None:
    """Runs a test in an event loop."""

    async def main() -> None:
        await test(TenantExchange())

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_tenants_workers_find_what_one_of_them_left() -> None:
    async def test(exchange: TenantExchange) -> None:
        one, two, other = (Worker(exchange, i, t) for i, t in ((1, "a"), (2, "a"), (3, "b")))
        status, token, _, _ = await one.ask(PUT, NONE, 1, b"driver's handle")
        assert status == OK
        assert len(token) == 16
        assert token != NONE
        assert (await two.ask(GET, token, 1))[0::2] == (OK, b"driver's handle")
        assert (await one.ask(GET, token, 1))[0] == OK
        assert (await other.ask(GET, token, 1))[0::2] == (UNKNOWN, b"")  # another tenant
        assert (await two.ask(GET, token, 2))[0] == UNKNOWN  # another kind
        assert (await two.ask(GET, os.urandom(16), 1))[0] == UNKNOWN
        await two.ask(DROP, token)  # not its own
        await other.ask(DROP, token)
        assert (await two.ask(GET, token, 1))[0] == OK
        await one.ask(DROP, token)
        assert (await two.ask(GET, token, 1))[0] == UNKNOWN

    run(test)


def test_descriptors_travel_and_are_closed() -> None:
    async def test(exchange: TenantExchange) -> None:
        one, two = Worker(exchange, 1, "a"), Worker(exchange, 2, "a")
        before = open_files()
        mine = os.memfd_create("test")
        os.write(mine, b"content")
        _, token, _, _ = await one.ask(PUT, NONE, 3, b"", mine)
        os.close(mine)
        for _ in range(2):
            status, _, _, fd = await two.ask(GET, token, 3)
            assert status == OK
            assert fd is not None
            assert os.pread(fd, 100, 0) == b"content"
            os.close(fd)
        exchange.leave(1)
        assert (await two.ask(GET, token, 3))[0] == UNKNOWN
        assert open_files() == before - 1  # the member's own end

    run(test)


def test_who_breaks_the_protocol_is_out() -> None:
    async def test(exchange: TenantExchange) -> None:
        for rubbish in (b"x", bytes(MESSAGE.size), bytes(MESSAGE.size + 1)):
            worker = Worker(exchange, 1, "a")
            worker.connection.send(rubbish)
            assert await worker.receive() == (b"", [])
        worker = Worker(exchange, 2, "a")
        worker.connection.close()
        await asyncio.sleep(0.05)
        exchange.leave(2)  # it has left already

    run(test)


def test_what_one_session_may_leave_is_limited() -> None:
    async def test(exchange: TenantExchange) -> None:
        one = Worker(exchange, 1, "a")
        with open("/dev/null", "rb") as file:  # noqa: PTH123
            for _ in range(1024):
                assert (await one.ask(PUT, NONE, 3, b"", file.fileno()))[0] == OK
            assert (await one.ask(PUT, NONE, 3, b"", file.fileno()))[0] == FULL
        exchange.leave(1)

    run(test)


def test_a_hostd_without_descriptors_says_so() -> None:
    """The worker's descriptor is lost on the way; the worker itself is not."""

    async def test(exchange: TenantExchange) -> None:
        one = Worker(exchange, 1, "a")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        fd = os.memfd_create("test")
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, hard))
            answer = await one.ask(PUT, NONE, 3, b"", fd)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert answer[0] == FULL
        assert (await one.ask(PUT, NONE, 3, b"", fd))[0] == OK
        os.close(fd)

    run(test)
