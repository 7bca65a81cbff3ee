"""The channel of the guest agent (port 9178 of vsock): one JSON object a line each way.

    {"method": "terms"}    -> {"ok": true, "version": "0.1.0", "endpoint": "vsock://2:9177",
                               "vgpus": [{"name": "web", "compute_percent": 25, "memory_mib": 4096,
                                          "policy": "elastic"}],
                               "window": {"bytes": 268435456} or null}
    {"method": "health", "state": "ready" or "failed", "detail": "..."}          -> {"ok": true}

Whatever is wrong is {"ok": false, "error": text}. Which virtual machine asks, the socket or the CID
says; nothing that comes over the channel can name another. A container of a Kata sandbox says
which it is by its token: a request has `"token": TEXT` then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from gpupool.hostd.api.conversations import Conversations
from gpupool.hostd.api.crowd import Crowd
from gpupool.hostd.api.greeter import Inside, Place
from gpupool.hostd.core.admission import Door, Refusal
from gpupool.hostd.core.peer import Peer
from gpupool.hostd.core.vm import HOST_CID, SESSION_PORT, VmError
from gpupool.hostd.core.vms import Vms
from gpupool.hostd.log import RateLimit, fields

log = logging.getLogger("gpupool.hostd")

_LINE_BYTES = 4096
_CONNECTION_TIMEOUT_S = 60.0
_MAX_CONNECTIONS = 1024  # at one socket, which all share where CIDs tell them apart
_MAX_OF_ONE = 8  # virtual machine
_DETAIL_CHARACTERS = 200


class VmAgents:
    """Answers the agents of one host's virtual machines."""

    def __init__(
        self,
        vms: Vms,
        place: Place,
        inside: Inside,
        identify: Callable[[socket.socket], Peer],
        host_version: str,
    ) -> None:
        """`place`, `inside`: as the greeter has them."""
        self._vms = vms
        self._place = place
        self._inside = inside
        self._identify = identify
        self._host_version = host_version
        self._refusals = RateLimit()
        self._crowd = Crowd(_MAX_OF_ONE)

    async def serve(self, listener: socket.socket, door: Door) -> None:
        """Accepts until cancelled."""
        conversations = Conversations(_MAX_CONNECTIONS)
        try:
            await conversations.accept(listener, door.name, partial(self._talk, door))
        finally:
            await conversations.finish()

    async def _talk(self, door: Door, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, asyncio.TimeoutError):
            connection.setblocking(False)
            peer = self._identify(connection)
            if peer.pidfd is not None:
                os.close(peer.pidfd)
            here, _ = self._place(door, peer)
            with self._crowd.enter(here, peer) as fits:
                if fits:
                    talk = self._conversation(door, peer, connection)
                    await asyncio.wait_for(talk, _CONNECTION_TIMEOUT_S)

    async def _conversation(self, door: Door, peer: Peer, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        pending = b""
        while True:
            while b"\n" not in pending:
                if len(pending) > _LINE_BYTES:
                    return
                piece = await loop.sock_recv(connection, _LINE_BYTES)
                if not piece:
                    return
                pending += piece
            line, _, pending = pending.partition(b"\n")
            answer = self._answer(line, door, peer)
            await loop.sock_sendall(connection, json.dumps(answer).encode() + b"\n")

    def _answer(self, line: bytes, door: Door, peer: Peer) -> dict[str, Any]:
        here, _ = self._place(door, peer)  # again with each line: it may be released meanwhile
        if here.closed or not (here.vm or here.sandbox):
            return self._refused(door, here.closed or "no virtual machine of this host")
        try:
            # RecursionError: brackets within brackets.
            request = json.loads(line)
            if not isinstance(request, dict):
                raise VmError("a request is a JSON object with a method")
            known = self._inside(here, str(request.get("token", "")).encode())
            if isinstance(known, Refusal):
                return self._refused(door, known.text)
            return {"ok": True, **self._call(request, known.vm)}
        except (ValueError, RecursionError) as error:
            return self._refused(door, str(error))

    def _call(self, request: dict[str, Any], uuid: str) -> dict[str, Any]:
        method = request.get("method")
        if method == "terms":
            return self._terms(uuid)
        if method == "health":
            return self._health(request, uuid)
        raise VmError(f"unknown method {str(method)[:40]!r}; known are terms, health")

    def _terms(self, uuid: str) -> dict[str, Any]:
        vm = self._vms.get(uuid)
        return {
            "version": self._host_version,
            "endpoint": f"vsock://{HOST_CID}:{SESSION_PORT}",
            "vgpus": [
                {
                    "name": vgpu.name,
                    "compute_percent": vgpu.quota.compute_percent,
                    "memory_mib": vgpu.quota.memory_mib,
                    "policy": vgpu.quota.policy.value,
                }
                for vgpu in self._vms.vgpus_of(uuid)
            ],
            "window": {"bytes": vm.window_mib << 20} if vm.window_mib else None,
        }

    def _health(self, request: dict[str, Any], uuid: str) -> dict[str, Any]:
        state, detail = request.get("state"), request.get("detail", "")
        if state not in ("ready", "failed") or not isinstance(detail, str):
            raise VmError("health needs a state, ready or failed, and may have a detail, a text")
        self._vms.told_health(uuid, state, detail[:_DETAIL_CHARACTERS])
        return {}

    def _refused(self, door: Door, text: str) -> dict[str, Any]:
        write, left_out = self._refusals.admit(asyncio.get_running_loop().time())
        if left_out:
            log.warning("agents' errors not logged", extra=fields({"count": left_out}))
        if write:
            facts = {"endpoint": door.name, "reason": text[:_DETAIL_CHARACTERS]}
            log.warning("agent refused", extra=fields(facts))
        return {"ok": False, "error": text}
