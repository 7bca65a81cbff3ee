"""The door for the command line: one JSON object a line each way, over a unix socket that only
hostd's user may open.

    {"method": "status"}                       -> {"ok": true, "result": {...}}
    {"method": "nonsense"}                     -> {"ok": false, "error": "unknown method ..."}

Methods: `status`, `devices` (looks at the machine again), `end` {"session": 3, "kill": false},
`stop` (hostd leaves, workers go on), `join` {"settings": {...}} (a `gpupool run` is here: hostd
does not leave while that process lives). More are in api/pools.py, api/vgpus.py and
api/vms.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from gpupool.hostd.api.conversations import Conversations
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.peer import Peer
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.session import Session

log = logging.getLogger("gpupool.hostd")

_LINE_BYTES = 64 * 1024
_CONNECTION_TIMEOUT_S = 60.0
_MAX_CONNECTIONS = 128


# Takes the request, answers the result, perhaps after a while. Raises ValueError with a text for
# the caller.
Result = dict[str, Any]
Method = Callable[[dict[str, Any]], "Result | Awaitable[Result]"]


class BadRequestError(ValueError):
    """The request cannot be served; the text goes back to the caller."""


class Admin:
    """Answers requests about one Host."""

    def __init__(
        self,
        host: Host,
        identify: Callable[[socket.socket], Peer],
        facts: dict[str, Any],
        rediscover: Callable[[], Awaitable[None]],
        stop: Callable[[str], None],
        more: Mapping[str, Method] | None = None,
    ) -> None:
        """`more`: methods of other parts, by name."""
        self._host = host
        self._identify = identify
        self._facts = (
            facts  # what `status` says about hostd itself; "settings" is compared by `join`
        )
        self._rediscover = rediscover
        self._stop = stop
        self._more = more or {}
        self._conversations = Conversations(_MAX_CONNECTIONS)
        self.guests: dict[
            int, int
        ] = {}  # pidfd -> pid of every `gpupool run` that joined and lives
        self.on_guest_change: Callable[[], None] = lambda: None

    async def serve(self, listener: socket.socket) -> None:
        """Accepts until cancelled."""
        await self._conversations.accept(listener, "admin", self._talk)

    async def finish(self) -> None:
        """Ends every conversation and forgets the guests."""
        await self._conversations.finish()
        for pidfd in self.guests:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
        self.guests.clear()

    async def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, asyncio.TimeoutError):
            connection.setblocking(False)
            peer = self._identify(connection)
            if peer.pidfd is not None:
                os.close(peer.pidfd)
            if peer.uid in (0, os.geteuid()):
                await asyncio.wait_for(self._conversation(connection), _CONNECTION_TIMEOUT_S)

    async def _conversation(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        pending = b""
        while True:
            while b"\n" not in pending:
                piece = await loop.sock_recv(connection, _LINE_BYTES)
                if not piece or len(pending) > _LINE_BYTES:
                    return
                pending += piece
            line, _, pending = pending.partition(b"\n")
            answer = await self._answer(line, connection)
            await loop.sock_sendall(connection, json.dumps(answer).encode() + b"\n")

    async def _answer(self, line: bytes, connection: socket.socket) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise BadRequestError("a request is a JSON object with a method")
            return {"ok": True, "result": await self._call(request, connection)}
        except (ValueError, PortError) as error:  # ours and what json raises
            return {"ok": False, "error": str(error)}
        except (
            Exception
        ) as error:  # an accident here is logged with its trace, and must not end the daemon
            log.exception("admin request failed")
            return {"ok": False, "error": f"hostd failed: {error!r}; its log says more"}

    async def _call(self, request: dict[str, Any], connection: socket.socket) -> dict[str, Any]:
        method = request.get("method")
        if method == "status":
            return self._status()
        if method == "devices":
            await self._rediscover()
            return self._devices()
        if method == "end":
            return self._end(request)
        if method == "stop":
            self._stop("asked to")
            return {"sessions": len(self._host.sessions)}
        if method == "join":
            return self._join(request, connection)
        if isinstance(method, str) and method in self._more:
            result = self._more[method](request)
            return result if isinstance(result, dict) else await result
        known = ", ".join(["status", "devices", "end", "stop", "join", *self._more])
        raise BadRequestError(f"unknown method {method!r}; known are {known}")

    def _status(self) -> dict[str, Any]:
        return {
            **{key: fact() if callable(fact) else fact for key, fact in self._facts.items()},
            "runs": sorted(self.guests.values()),
            "gpus": len(self._host.inventory.gpus),
            "notes": list(self._host.inventory.notes),
            "workers_waiting": self._host.workers_waiting,
            "sessions": [self._session(session) for session in self._host.sessions],
        }

    def _session(self, session: Session) -> dict[str, Any]:
        counters, usage = self._host.activity(session.id)
        return {
            **session.as_dict(),
            "tenant": session.tenant_number,
            "counters": asdict(counters),
            "usage": [asdict(one) for one in usage],
        }

    def _devices(self) -> dict[str, Any]:
        inventory = self._host.inventory
        return {
            "gpus": [asdict(gpu) for gpu in inventory.gpus],
            "library": inventory.library,
            "driver_version": inventory.driver_version,
            "notes": list(inventory.notes),
        }

    def _end(self, request: dict[str, Any]) -> dict[str, Any]:
        session, kill = request.get("session"), request.get("kill", False)
        if type(session) is not int or type(kill) is not bool:
            raise BadRequestError(
                "end needs a session (a number), and may say kill (true or false)"
            )
        if not self._host.end(session, kill=kill):
            known = ", ".join(str(one.id) for one in self._host.sessions) or "none"
            raise BadRequestError(f"there is no session {session}; there are: {known}")
        return {"session": session}

    def _join(self, request: dict[str, Any], connection: socket.socket) -> dict[str, Any]:
        """A run with other settings than ours is not taken in: it would silently get ours."""
        settings, ours = request.get("settings"), self._facts["settings"]
        if settings != ours:
            busy = bool(self._host.sessions or self.guests)
            return {"joined": False, "busy": busy, "settings": ours, "pid": os.getpid()}
        peer = self._identify(connection)
        if peer.pidfd is None:
            raise BadRequestError("the kernel does not tell who joins (pidfd_open is missing)")
        self.guests[peer.pidfd] = peer.pid
        asyncio.get_running_loop().add_reader(peer.pidfd, self._guest_left, peer.pidfd)
        self.on_guest_change()
        return {"joined": True, "endpoints": self._facts["endpoints"], "pid": os.getpid()}

    def _guest_left(self, pidfd: int) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        self.guests.pop(pidfd, None)
        os.close(pidfd)
        self.on_guest_change()
