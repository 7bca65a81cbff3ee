"""The connection to the controller: registers this node, hears what it should have, says what it
has, asks for on-demand vGPUs. gRPC, from hostd's side only; any replica will do.

A connection that breaks is made again, at the next of the configured addresses, after a pause that
grows and is never the same on two nodes. The registration outlives it: a controller that was
restarted is told nothing new unless it asks for it. Nothing here ends a session, and nothing waits
without a bound: each call has a deadline, and HTTP/2 pings find a peer that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from gpupool.hostd.adapters.link_messages import UNKNOWN_OUTCOME, LinkMessages
from gpupool.hostd.core.controlled import Controlled
from gpupool.hostd.core.differences import difference
from gpupool.hostd.core.link import (
    Claim,
    ClaimAnswer,
    Desired,
    GpuLoad,
    Introduction,
    LinkError,
    LinkStatus,
    Picture,
    Registration,
)
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.log import fields
from gpupool.wire.proto.node import NodeApi

log = logging.getLogger("gpupool.hostd")

_CALL_S = 10.0
_LOOK_S = 5.0  # what changes without a word: memory in use, measured overhead
_WHOLE_S = 60.0  # how often that alone is worth a report
_MOST_DIFFERENCES = 64  # after so many a whole picture, whatever may have been missed
_SETTLE_S = 0.05  # changes that come together are told together
_MOST_TOKEN_BYTES = 4096
_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),  # what is done again is decided here
    ("grpc.use_local_subchannel_pool", 1),  # a new try is a new connection
)


class _RegisterAgainError(Exception):
    """The controller does not know this incarnation, or this node has other GPUs now."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """The section [controller] of the configuration."""

    targets: tuple[str, ...]  # "host:port", tried in turn
    tls: bool
    token_file: Path | None = None
    ca_file: Path | None = None  # None: those that the system trusts
    certificate: Path | None = None  # of this node, where the controller asks for one
    key: Path | None = None
    first_pause_s: float = 0.5
    longest_pause_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Node:
    """What the link needs to know of this node."""

    introduction: Callable[[], Introduction]
    loads: Callable[[], Sequence[GpuLoad]]
    desired: Callable[[Desired], None]  # a new one was put into effect


class ControllerLink:
    """One connection at a time, for as long as hostd lives."""

    def __init__(
        self, settings: LinkSettings, api: NodeApi, controlled: Controlled, node: Node
    ) -> None:
        self._settings = settings
        self._api = api
        self._messages = LinkMessages(api)
        self._controlled = controlled
        self._node = node
        self._me: Registration | None = None
        self._introduced: Introduction | None = None
        self._sequence = 0
        self._channel: grpc.aio.Channel | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._connected = asyncio.Event()
        self._changed = asyncio.Event()
        # A report that is made after a claim must have it; so the two never overlap.
        self._one_at_a_time = asyncio.Lock()
        self._problem = "not tried yet"
        # What the controller has taken, with its number; None: it needs a whole picture next.
        self._last: Picture | None = None
        self._last_s = 0.0
        self._last_sequence = 0
        self._differences = 0  # since the last whole picture; below 0: not on this connection

    def changed(self) -> None:
        """Sessions, vGPUs or GPUs are others now."""
        self._changed.set()

    @property
    def status(self) -> LinkStatus:
        """How it stands."""
        connected = self._connected.is_set()
        introduced = self._introduced or self._node.introduction()
        return LinkStatus(
            url=", ".join(self._settings.targets),
            node=introduced.name,
            connected=connected,
            problem="" if connected else self._problem,
            generation=self._controlled.generation,
            not_done=dict(self._controlled.not_done),
            draining=self._controlled.draining,
        )

    async def run(self) -> None:
        """Connects, and again, until cancelled."""
        pause_s = self._settings.first_pause_s
        attempt = 0
        while True:
            target = self._settings.targets[attempt % len(self._settings.targets)]
            attempt += 1
            try:
                await self._connection(target)
            except _RegisterAgainError as error:
                log.info("registering again", extra=fields({"reason": str(error)}))
                self._me = None
            except (LinkError, PortError, OSError, grpc.RpcError) as error:
                self._tell_problem(target, _text(error))
            except Exception as error:
                # An accident here must not end hostd, which serves without a controller, too.
                log.exception("link to the controller failed")
                self._problem = f"an accident: {error!r}; hostd's log says more"
            if self._connected.is_set():
                pause_s = self._settings.first_pause_s
            self._connected.clear()
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311  no secret
            pause_s = min(2 * pause_s, self._settings.longest_pause_s)

    def _tell_problem(self, target: str, text: str) -> None:
        if text != self._problem or self._connected.is_set():
            facts = {"controller": target, "error": text}
            log.warning("controller not reached; what was granted goes on", extra=fields(facts))
        self._problem = text

    async def _connection(self, target: str) -> None:
        """One connection, until it breaks. Raises what broke it."""
        async with self._open(target) as channel:
            self._channel = channel
            self._differences = 0  # another controller may know the call
            if self._me is None:
                await self._register(target)
            tasks = [
                asyncio.create_task(work)
                for work in (self._watch(target), self._beat(), self._report())
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                self._channel = None
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _open(self, target: str) -> AsyncIterator[grpc.aio.Channel]:
        settings = self._settings
        self._metadata = ()
        if settings.token_file is not None:
            self._metadata = (("authorization", f"Bearer {read_secret(settings.token_file)}"),)
        if settings.tls:
            credentials = grpc.ssl_channel_credentials(
                root_certificates=settings.ca_file.read_bytes() if settings.ca_file else None,
                private_key=settings.key.read_bytes() if settings.key else None,
                certificate_chain=settings.certificate.read_bytes()
                if settings.certificate
                else None,
            )
            channel = grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
        else:
            channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        try:
            yield channel
        finally:
            await channel.close()

    async def _call(self, name: str, request: Any) -> Any:
        channel = self._channel
        if channel is None:
            raise LinkError("the controller is not connected")
        call = self._api.calls[name]
        ask = channel.unary_unary(
            call.path,
            request_serializer=call.request.SerializeToString,
            response_deserializer=call.reply.FromString,
        )
        return await ask(request, timeout=_CALL_S, metadata=self._metadata)

    async def _register(self, target: str) -> None:
        introduction = self._node.introduction()
        reply = await self._call("Register", self._messages.register(introduction))
        self._me = self._messages.registered(reply)
        self._introduced = introduction
        self._sequence = 0
        self._last = None
        self._controlled.begin()
        facts = {"controller": target, "node": self._me.node_id, "name": introduction.name}
        log.info("registered", extra=fields(facts))

    async def _watch(self, target: str) -> None:
        channel, me = self._channel, self._me
        if channel is None or me is None:
            raise LinkError("not registered")
        call = self._api.calls["Watch"]
        watch = channel.unary_stream(
            call.path,
            request_serializer=call.request.SerializeToString,
            response_deserializer=call.reply.FromString,
        )
        # What this stream says is newer than any answer before it, also where the database was put
        # back to an older copy.
        self._controlled.resume()
        try:
            async for message in watch(self._messages.watch(me), metadata=self._metadata):
                if not self._connected.is_set():
                    log.info("controller connected", extra=fields({"controller": target}))
                    self._connected.set()
                desired = self._messages.desired(message)
                if self._controlled.apply(desired):
                    self._node.desired(desired)
                self._changed.set()
        except grpc.RpcError as error:
            if _code(error) is grpc.StatusCode.FAILED_PRECONDITION:
                raise _RegisterAgainError(_text(error)) from error
            raise
        raise LinkError("the controller ended the stream")

    async def _beat(self) -> None:
        me = self._me
        if me is None:
            raise LinkError("not registered")
        while True:
            reply = await self._call("Beat", self._messages.beat(me, self._node.loads()))
            if not reply.known:
                raise _RegisterAgainError("the controller does not know this incarnation")
            await asyncio.sleep(me.beat_s * random.uniform(0.9, 1.0))  # noqa: S311

    async def _report(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _LOOK_S)
                await asyncio.sleep(_SETTLE_S)
            self._changed.clear()
            self._controlled.run()
            if self._introduced is not None and _others(self._introduced, self._node):
                raise _RegisterAgainError("this node has other GPUs now")
            # Before that nobody knows which vGPUs are the node's own business.
            if not self._controlled.known:
                continue
            async with self._one_at_a_time:
                picture = self._controlled.picture()
                if self._worth_telling(picture, now()):
                    await self._send(picture)
                    self._last, self._last_s = picture, now()

    def _worth_telling(self, picture: Picture, now_s: float) -> bool:
        if self._last is None or _outline(picture) != _outline(self._last):
            return True
        return picture != self._last and now_s - self._last_s >= _WHOLE_S

    async def _send(self, picture: Picture) -> None:
        """As a difference where the controller will have it, else whole."""
        if self._last is None or not 0 <= self._differences < _MOST_DIFFERENCES:
            await self._send_whole(picture)
            return
        new = difference(self._last_sequence, self._last, picture)
        try:
            reply = await self._send_as("ReportChanges", self._messages.changes, new)
        except grpc.RpcError as error:
            if _code(error) is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            self._differences = -1  # an older controller
        else:
            self._differences += 1
            if not reply.whole:
                return
        await self._send_whole(picture)

    async def _send_whole(self, picture: Picture) -> None:
        await self._send_as("Report", self._messages.report, picture)
        self._differences = min(self._differences, 0)

    async def _send_as(
        self, call: str, make: Callable[[Registration, int, Any], Any], content: Any
    ) -> Any:
        me = self._me
        if me is None:
            raise LinkError("not registered")
        self._sequence += 1
        reply = await self._call(call, make(me, self._sequence, content))
        if not reply.known:
            raise _RegisterAgainError("the controller does not know this incarnation")
        if not reply.accepted and not reply.whole:
            raise _RegisterAgainError(f"report {self._sequence} is an old one there")
        self._last_sequence = self._sequence
        return reply

    async def claim(self, claim: Claim, settle: Callable[[ClaimAnswer], None]) -> ClaimAnswer:
        """Asks for a vGPU; `settle` is called with the answer before anything else is told.

        Raises LinkError where there is none: the controller may or may not have heard, and the
        next report tells it that there is no such session.
        """
        async with self._one_at_a_time:
            me = self._me
            if me is None or not self._connected.is_set():
                raise LinkError(f"the controller is not reached: {self._problem}")
            try:
                request = self._messages.claim(me, claim, self._sequence)
                reply = await self._call("Claim", request)
            except grpc.RpcError as error:
                self._tell_all()
                raise LinkError(f"the controller does not answer: {_text(error)}") from error
            except asyncio.CancelledError:  # the client has left
                self._tell_all()
                raise
            if reply.outcome == UNKNOWN_OUTCOME:
                raise LinkError("the controller does not know this node yet")
            answer = self._messages.claimed(reply)
            settle(answer)
            return answer

    def _tell_all(self) -> None:
        """A report follows: the controller may know of a claim that nobody uses."""
        self._last = None
        self._changed.set()


def read_secret(path: Path) -> str:
    """The token in a file that only its owner may read. Raises PortError."""
    try:
        if path.stat().st_mode & 0o077:
            raise PortError(f"{path} can be used by others: chmod 600 {path}")
        with path.open("rb") as file:
            secret = file.read(_MOST_TOKEN_BYTES).decode("ascii").strip()
    except OSError as error:
        raise PortError(f"token of the controller: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PortError(f"token of the controller: {path} is no text") from error
    if not secret or any(character.isspace() for character in secret):
        raise PortError(f"token of the controller: {path} holds no token")
    return secret


def _outline(picture: Picture) -> Picture:
    """Without what changes all the time."""
    return replace(
        picture,
        gpus=tuple(replace(gpu, overhead_mib=0) for gpu in picture.gpus),
        vgpus=tuple(replace(one, memory_used_mib=0) for one in picture.vgpus),
    )


def _others(introduced: Introduction, node: Node) -> bool:
    now = node.introduction()
    return {one.uuid for one in now.gpus} != {one.uuid for one in introduced.gpus}


def _code(error: grpc.RpcError) -> grpc.StatusCode | None:
    return error.code() if isinstance(error, grpc.aio.AioRpcError) else None


def _text(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details() or 'no details'}"
    return str(error)
