"""Exchange port: where workers of one tenant leave memory and events for each other.

A worker puts a driver's handle here, or a descriptor, and gets a random token; the program passes
the token on as CUDA's own handle, and the worker of another session asks for what is behind it.
Only a session of the same tenant is answered. Each worker has one end of a socket pair, so that it
needs no name, no address and no rights; hostd/worker/exchange.hpp is the other end.

What a session has left is gone with the session, and with this hostd: sessions that outlive it can
share nothing new.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import struct
from dataclasses import dataclass, field

from gpupool.hostd.core.ports import PortError
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

# struct ExchangeMessage of hostd/worker/exchange.hpp: magic, operation or status, sequence, token,
# kind, size, payload.
MESSAGE = struct.Struct("<IIQ16sII256s")
MAGIC = 0x4747_5845  # "EXGG"
PUT, GET, DROP = 1, 2, 3
OK, UNKNOWN, FULL = 0, 1, 2
_TOKEN_BYTES = 16
_PAYLOAD_BYTES = 256
_MAX_ENTRIES = 1 << 16  # of one session
_MAX_DESCRIPTORS = 1024  # of one session


@dataclass(slots=True)
class _Entry:
    session_id: int
    kind: int
    payload: bytes
    fd: int | None


@dataclass(slots=True)
class _Member:
    connection: socket.socket
    tenant: str
    tokens: set[bytes] = field(default_factory=set)
    descriptors: int = 0


@dataclass(frozen=True, slots=True)
class _Request:
    operation: int
    sequence: int
    token: bytes
    kind: int
    payload: bytes


class TenantExchange:
    """Implements `ports.Exchange`. Must be used from the thread of the running event loop."""

    def __init__(self) -> None:
        self._members: dict[int, _Member] = {}
        self._entries: dict[tuple[str, bytes], _Entry] = {}

    def join(self, session_id: int, tenant: str) -> int:
        """The worker's end. Raises PortError."""
        try:
            ours, theirs = socket.socketpair(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
            )
        except OSError as error:
            raise PortError(f"cannot connect a worker (socketpair): {error.strerror}") from error
        ours.setblocking(False)
        self._members[session_id] = _Member(ours, tenant)
        asyncio.get_running_loop().add_reader(ours, self._serve, session_id)
        return theirs.detach()

    def close(self, fd: int) -> None:
        """Closes hostd's copy of the worker's end."""
        os.close(fd)

    def leave(self, session_id: int) -> None:
        """Forgets everything that the session has left here. One that never joined is no error."""
        member = self._members.pop(session_id, None)
        if member is None:
            return
        asyncio.get_running_loop().remove_reader(member.connection)
        member.connection.close()
        for token in member.tokens:
            self._close(self._entries.pop((member.tenant, token)))

    def _serve(self, session_id: int) -> None:
        member = self._members[session_id]
        try:
            data, fds, flags, _ = socket.recv_fds(
                member.connection, MESSAGE.size + 1, 1, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            return self.leave(session_id)  # its worker is gone
        fd = fds[0] if fds else None
        try:
            request = _parse(data)
            if request is None:
                if data:
                    log.error("worker broke the exchange", extra=fields({"session": session_id}))
                return self.leave(session_id)
            lost = bool(flags & socket.MSG_CTRUNC)  # hostd has no descriptors left
            fd = self._answer(session_id, member, request, fd, lost=lost)
        except OSError as error:
            log.error(
                "worker does not take its answer",
                extra=fields({"session": session_id, "error": str(error)}),
            )
            self.leave(session_id)
        finally:
            if fd is not None:
                os.close(fd)

    def _answer(
        self, session_id: int, member: _Member, request: _Request, fd: int | None, *, lost: bool
    ) -> int | None:
        """Does what was asked and says so. Returns the descriptor that nobody keeps."""
        status, token, payload, passed = OK, request.token, b"", None
        if request.operation == PUT and lost:
            status = FULL
        elif request.operation == PUT:
            status, token = self._put(session_id, member, request, fd)
            if status == OK:
                fd = None
        elif request.operation == DROP:
            self._drop(member, request.token)
        else:
            entry = self._entries.get((member.tenant, request.token))
            if entry is None or entry.kind != request.kind:
                status = UNKNOWN
            else:
                payload, passed = entry.payload, entry.fd
        message = MESSAGE.pack(
            MAGIC, status, request.sequence, token, request.kind, len(payload), payload
        )
        socket.send_fds(member.connection, [message], [] if passed is None else [passed])
        return fd

    def _put(
        self, session_id: int, member: _Member, request: _Request, fd: int | None
    ) -> tuple[int, bytes]:
        if len(member.tokens) >= _MAX_ENTRIES or member.descriptors >= _MAX_DESCRIPTORS:
            return FULL, bytes(_TOKEN_BYTES)
        token = secrets.token_bytes(_TOKEN_BYTES)
        entry = _Entry(session_id, request.kind, request.payload, fd)
        self._entries[(member.tenant, token)] = entry
        member.tokens.add(token)
        member.descriptors += fd is not None
        return OK, token

    def _drop(self, member: _Member, token: bytes) -> None:
        """Only what the session itself has put here."""
        if token not in member.tokens:
            return
        member.tokens.remove(token)
        entry = self._entries.pop((member.tenant, token))
        member.descriptors -= entry.fd is not None
        self._close(entry)

    @staticmethod
    def _close(entry: _Entry) -> None:
        if entry.fd is not None:
            with contextlib.suppress(OSError):
                os.close(entry.fd)


def _parse(data: bytes) -> _Request | None:
    if len(data) != MESSAGE.size:
        return None
    magic, operation, sequence, token, kind, size, payload = MESSAGE.unpack(data)
    if magic != MAGIC or operation not in (PUT, GET, DROP) or size > _PAYLOAD_BYTES:
        return None
    return _Request(operation, sequence, token, kind, payload[:size])
