"""Clients that wait for room: their place in the line, what they are told, how they leave.

A client that would wait is told where it stands, and again when that has changed. One that would
not is still given a moment, in silence: the program before it may be just about to let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpupool.hostd.core.admission import Refusal
from gpupool.hostd.core.allocation import NoPlace
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.vgpu import Wanted
from gpupool.hostd.core.waiting_line import Ticket
from gpupool.wire.hello import Welcome, WelcomeStatus

# A worker takes so long to end: with an H100's context about 0.3 s, more with much memory mapped.
MOMENT_S = 3.0
_LOOK_AGAIN_S = 5.0  # measured overhead changes without a word
_TELL_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Waiter:
    """A client that found no room."""

    wanted: Wanted
    program: str
    pid: int
    wait_s: int  # as it asked


class RoomWaiters:
    """Those of one host."""

    def __init__(self, host: Host, queue_s: int, host_version: str) -> None:
        self._host = host
        self._queue_s = queue_s
        self._host_version = host_version
        self._events: set[asyncio.Event] = set()
        host.on_change.append(self._changed)

    async def wait(
        self,
        connection: socket.socket,
        waiter: Waiter,
        try_open: Callable[[Ticket | None], Refusal | NoPlace | None],
    ) -> Refusal | None:
        """Until `try_open` has found it a place. None, too, when the client has left."""
        now = asyncio.get_running_loop().time
        priority = self._host.allocations.priority_of(waiter.wanted)
        ticket = Ticket(waiter.wanted, waiter.program, waiter.pid, now(), priority)
        if not self._host.line.enter(ticket):
            text = "too many clients wait for room on this host; try again later"
            return Refusal(WelcomeStatus.LIMIT, text)
        wait_s = min(waiter.wait_s, self._queue_s)
        ends_s = now() + max(wait_s, MOMENT_S)
        told = ""
        try:
            with self._watching(connection) as event:
                while True:
                    event.clear()
                    answer = try_open(ticket)
                    if not isinstance(answer, NoPlace):
                        return answer
                    connection.setblocking(False)
                    if has_left(connection):
                        return None
                    if now() >= ends_s:
                        return Refusal(WelcomeStatus.LIMIT, _after(answer.text, wait_s))
                    text = self._standing(ticket, wait_s)
                    if wait_s and text != told:
                        await tell(connection, text, self._host_version)
                        told = text
                    with contextlib.suppress(asyncio.TimeoutError):
                        left_s = min(ends_s - now(), _LOOK_AGAIN_S)
                        await asyncio.wait_for(event.wait(), max(0.0, left_s))
        finally:
            self._host.line.leave(ticket)
            self._changed()

    def _changed(self) -> None:
        for event in self._events:
            event.set()

    @contextlib.contextmanager
    def _watching(self, connection: socket.socket) -> Iterator[asyncio.Event]:
        """Set when there may be room, and when the client has left or says something."""
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        self._events.add(event)
        fd = connection.fileno()

        def readable() -> None:
            loop.remove_reader(fd)  # once: it stays readable
            event.set()

        loop.add_reader(fd, readable)
        try:
            yield event
        finally:
            loop.remove_reader(fd)
            self._events.discard(event)

    def _standing(self, ticket: Ticket, wait_s: int) -> str:
        place, of = self._host.line.before(ticket) + 1, len(self._host.line.tickets)
        return f"waiting for room on a GPU, for up to {wait_s} s: place {place} of {of}"


async def tell(connection: socket.socket, text: str, host_version: str) -> None:
    """Tells a client that it waits, and for what. Raises OSError and TimeoutError."""
    welcome = Welcome(WelcomeStatus.WAITING, text=text, host_version=host_version)
    sending = asyncio.get_running_loop().sock_sendall(connection, welcome.encode())
    await asyncio.wait_for(sending, _TELL_TIMEOUT_S)


def _after(text: str, wait_s: int) -> str:
    return f"no room within {wait_s} s: {text}" if wait_s else text


def has_left(connection: socket.socket) -> bool:
    """Whether it is gone, or says something where it has nothing to say."""
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    return True
