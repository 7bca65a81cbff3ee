"""The door for clients: reads one Hello from a connection, then hands the connection to a worker or
says no.

A Query in the Hello's place (NVML in a guest asks about its vGPUs) is answered here, without a
worker. Reads exactly a Hello and nothing behind it: what follows belongs to the worker. Every step
has a deadline, and the number of connections that have not said Hello yet is bounded, so idle
connections cannot use hostd up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import replace

from gpupool.hostd.api.conversations import Conversations
from gpupool.hostd.api.crowd import Crowd
from gpupool.hostd.api.lanes import PendingLanes
from gpupool.hostd.api.room_waiters import RoomWaiters, Waiter
from gpupool.hostd.api.slots import Slot, Slots
from gpupool.hostd.api.vgpu_claims import Settled, VgpuClaims
from gpupool.hostd.core.admission import (
    Door,
    Refusal,
    check_header,
    check_lanes,
    check_token,
    of_vm,
)
from gpupool.hostd.core.allocation import NoPlace
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.peer import Peer, owner_of
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.waiting_line import Ticket
from gpupool.hostd.log import RateLimit, fields
from gpupool.wire.hello import (
    HEADER_BYTES,
    HELLO_BYTES,
    LANE_BYTES,
    Hello,
    HelloHeader,
    LaneHello,
    MalformedHelloError,
    TransportKind,
    Welcome,
    WelcomeStatus,
    hello_bytes,
)
from gpupool.wire.query import Query, Report, query_bytes

log = logging.getLogger("gpupool.hostd")

_MAX_WAITING = 512  # connections that have not said Hello yet
_MAX_OF_VM = 128  # of these, of one virtual machine: as many as one vGPU has sessions
_CROWDED = Refusal(
    WelcomeStatus.LIMIT,
    f"more than {_MAX_OF_VM} connections of this virtual machine wait to be greeted; try again",
)
_ANSWER_TIMEOUT_S = 2.0  # for a refused client to take its answer

# Takes a connection over, and where it comes from; answers the end that is in clear. Raises
# PortError.
Secure = Callable[[socket.socket, str], socket.socket]

# The door as that client finds it, and who the client is there.
Place = Callable[[Door, Peer], tuple[Door, Peer]]


# The door as whoever has that token finds it.
Inside = Callable[[Door, bytes], "Door | Refusal"]


def as_it_is(door: Door, peer: Peer) -> tuple[Door, Peer]:
    """Where no virtual machines come in."""
    return door, peer


def same_for_all(door: Door, _token: bytes) -> Door | Refusal:
    """Where no Kata containers come in."""
    return door


class Greeter:
    """Serves listening sockets for one Host."""

    def __init__(
        self,
        host: Host,
        identify: Callable[[socket.socket], Peer],
        hello_timeout_s: float,
        host_version: str,
        connections: int = 1,
        queue_s: int = 0,
        claims: VgpuClaims | None = None,
        place: Place = as_it_is,
        inside: Inside = same_for_all,
    ) -> None:
        """`connections`: how many of one session are used. `queue_s`: how long a client may wait
        for room. `place`: tells clients out of virtual machines apart, `inside` those out of one.
        """
        self._place = place
        self._inside = inside
        self._host = host
        self._room = RoomWaiters(host, queue_s, host_version)
        self._claims = claims
        self._most_lanes = connections - 1
        self._lanes = PendingLanes(hello_timeout_s)
        self._slots = Slots()
        self._crowd = Crowd(_MAX_OF_VM)
        self._identify = identify
        self._hello_timeout_s = hello_timeout_s
        self._host_version = host_version
        # Those who wait for room are bounded by `WaitingLine`.
        self._waiting = Conversations()  # the bound is told to the client: _greet
        self._refusals = RateLimit()

    @property
    def waiting(self) -> int:
        """Connections between accept and worker."""
        return len(self._waiting)

    async def serve(
        self, listener: socket.socket, door: Door, secure: Secure | None = None
    ) -> None:
        """Accepts until cancelled."""
        await self._waiting.accept(
            listener, door.name, lambda connection: self._greet(connection, door, secure)
        )

    async def finish(self) -> None:
        """Drops connections that have not said Hello yet; to be called when stopping."""
        await self._waiting.finish()
        self._lanes.close()

    async def _greet(self, connection: socket.socket, door: Door, secure: Secure | None) -> None:
        peer = known = Peer()
        kept = False
        slot = Slot()
        try:
            connection.setblocking(False)
            known = self._identify(connection)
            door, peer = self._place(door, known)
            if secure is not None:
                where = peer.address.rpartition(":")[0]
                slot = await asyncio.wait_for(self._slots.take(where), self._hello_timeout_s)
                _keep_alive(connection)
                connection = secure(connection, peer.address)
                connection.setblocking(False)
            with self._crowd.enter(door, peer) as fits:
                answer = await self._decide(connection, peer, door, slot) if fits else _CROWDED
            if isinstance(answer, LaneHello):
                answer = self._keep(answer, peer, door, connection)
                kept = answer is None
            if isinstance(answer, Report):
                await self._answer(connection, answer.encode())
            elif answer is not None:
                self._log_refusal(answer, peer, door)
                await self._refuse(connection, answer)
        except PortError as error:
            log.error(
                "connection not secured", extra=fields({"endpoint": door.name, "error": str(error)})
            )
        except (OSError, asyncio.TimeoutError) as error:
            log.debug("connection lost", extra=fields({"endpoint": door.name, "error": str(error)}))
        except (
            Exception
        ):  # one client's accident must not end the daemon; it is logged with its trace
            log.exception("greeting failed", extra=fields({"endpoint": door.name}))
        finally:
            slot.release()
            if not kept:
                connection.close()
            if known.pidfd is not None:
                os.close(known.pidfd)

    async def _decide(
        self, connection: socket.socket, peer: Peer, door: Door, slot: Slot
    ) -> Refusal | Report | LaneHello | None:
        """None when a worker has the connection, or when the client left without a word."""
        if len(self._waiting) - len(self._host.line.tickets) > _MAX_WAITING:
            return Refusal(
                WelcomeStatus.LIMIT,
                f"more than {_MAX_WAITING} connections wait to be greeted; try again",
            )
        if door.closed:
            return Refusal(WelcomeStatus.LIMIT, door.closed)
        received = bytearray()
        try:
            reading = self._read_hello(connection, received)
            hello = await asyncio.wait_for(reading, self._hello_timeout_s)
        except asyncio.TimeoutError:
            return Refusal(
                WelcomeStatus.BAD_REQUEST,
                f"only {len(received)} of {HELLO_BYTES} bytes of Hello came within "
                f"{self._hello_timeout_s:g} s",
            )
        except EOFError:
            if not received:
                return None  # a probe: `is anybody there?`
            return Refusal(
                WelcomeStatus.BAD_REQUEST,
                f"the connection ended after {len(received)} of {HELLO_BYTES} bytes of Hello",
            )
        except MalformedHelloError as error:
            return Refusal(WelcomeStatus.BAD_REQUEST, f"malformed Hello: {error}")
        slot.release()  # what follows may wait for further connections, which need slots
        if isinstance(hello, (Refusal, LaneHello)):
            return hello
        return await self._settle(hello, peer, door, connection)

    async def _settle(
        self, hello: Hello | Query, peer: Peer, door: Door, connection: socket.socket
    ) -> Refusal | Report | None:
        here = self._inside(door, hello.token)
        if isinstance(here, Refusal):
            return here
        door = here
        if isinstance(hello, Query):
            query = of_vm(hello, door)
            if isinstance(query, Refusal):
                return query
            return self._host.report(query, peer, door, self._host_version)
        asking = of_vm(hello, door)
        if isinstance(asking, Refusal):
            return asking
        return await self._open(asking, peer, door, connection)

    async def _open(
        self, hello: Hello, peer: Peer, door: Door, connection: socket.socket
    ) -> Refusal | None:
        """For its vGPU it may need the controller's word first."""
        settled: Settled | Refusal | None = Settled(hello.vgpu)
        if self._claims is not None and not door.vm and self._claims.concern(hello):
            refusal = check_token(hello.token, door)
            settled = refusal or await self._claims.settle(connection, hello, door)
        if not isinstance(settled, Settled):
            return settled
        try:
            return await self._admit(replace(hello, vgpu=settled.vgpu), peer, door, connection)
        finally:
            if self._claims is not None:
                self._claims.closed(settled)

    async def _admit(
        self, hello: Hello, peer: Peer, door: Door, connection: socket.socket
    ) -> Refusal | None:
        lanes: tuple[socket.socket, ...] = ()
        owner = owner_of(peer, door)
        if hello.lanes:
            refusal = check_token(hello.token, door) or check_lanes(hello)
            wanted = min(hello.lanes, self._most_lanes)
            answer = refusal or await self._lanes.collect(hello.nonce, owner, wanted)
            if isinstance(answer, Refusal):
                self._lanes.discard(hello.nonce, owner)
                return answer
            lanes = answer

        def try_open(ticket: Ticket | None) -> Refusal | NoPlace | None:
            for one in (connection, *lanes):
                _prepare(one, hello)
            fds = tuple(lane.fileno() for lane in lanes)
            opened = self._host.open(hello, peer, door, connection.fileno(), fds, ticket)
            return opened if isinstance(opened, (Refusal, NoPlace)) else None

        try:
            result = try_open(None)
            if isinstance(result, NoPlace):
                asked = self._host.wanted(hello, peer, door)
                waiter = Waiter(asked, hello.program, peer.pid or hello.pid, hello.wait_s)
                result = await self._room.wait(connection, waiter, try_open)
            return result
        finally:
            for lane in lanes:
                lane.close()

    def _keep(
        self, lane: LaneHello, peer: Peer, door: Door, connection: socket.socket
    ) -> Refusal | None:
        """Takes a further connection over, or says why not."""
        here = self._inside(door, lane.token)
        if isinstance(here, Refusal):
            return here
        door = here
        refusal = check_token(lane.token, door)
        if refusal is None and lane.index >= self._most_lanes:
            connection.close()  # more than we use: the Welcome says how many those are
            return None
        return refusal or self._lanes.add(lane, owner_of(peer, door), connection)

    async def _read_hello(
        self, connection: socket.socket, received: bytearray
    ) -> Hello | Query | LaneHello | Refusal:
        await _read(connection, received, HEADER_BYTES)
        header = HelloHeader.decode(bytes(received))
        refusal = check_header(header, self._host_version)
        if refusal is not None:
            return refusal
        if header.is_query:
            await _read(connection, received, query_bytes(header.protocol_minor))
            return Query.decode(bytes(received))
        if header.is_lane:
            await _read(connection, received, LANE_BYTES)
            return LaneHello.decode(bytes(received))
        await _read(connection, received, hello_bytes(header.protocol_minor))
        return Hello.decode(bytes(received))

    async def _refuse(self, connection: socket.socket, refusal: Refusal) -> None:
        welcome = Welcome(status=refusal.status, text=refusal.text, host_version=self._host_version)
        await self._answer(connection, welcome.encode())

    async def _answer(self, connection: socket.socket, raw: bytes) -> None:
        """Sends the answer and waits until the client has it: closing with unread bytes would reset
        a TCP connection.
        """
        loop = asyncio.get_running_loop()
        connection.setblocking(False)

        async def send_and_drain() -> None:
            await loop.sock_sendall(connection, raw)
            connection.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(connection, 4096):
                pass

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(send_and_drain(), _ANSWER_TIMEOUT_S)

    def _log_refusal(self, refusal: Refusal, peer: Peer, door: Door) -> None:
        write, left_out = self._refusals.admit(asyncio.get_running_loop().time())
        if left_out:
            log.warning("refusals not logged", extra=fields({"count": left_out}))
        if write:
            facts = {"status": refusal.status.word, "reason": refusal.text, "endpoint": door.name}
            log.warning(
                "client refused",
                extra=fields({**facts, "pid": peer.pid, "uid": peer.uid, "address": peer.address}),
            )


async def _read(connection: socket.socket, received: bytearray, size: int) -> None:
    """Fills `received` up to `size` bytes and not one more. Raises EOFError."""
    loop = asyncio.get_running_loop()
    while len(received) < size:
        piece = await loop.sock_recv(connection, size - len(received))
        if not piece:
            raise EOFError
        received += piece


def _prepare(connection: socket.socket, hello: Hello) -> None:
    """How a worker gets its socket: blocking; over TCP without delay, and noticing a peer that
    vanished.
    """
    connection.setblocking(True)
    if hello.transport == TransportKind.TCP and connection.family in (
        socket.AF_INET,
        socket.AF_INET6,
    ):
        _keep_alive(connection)


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
