"""A node without a machine: speaks the real gRPC, does all it is told at once, and has clients.

Thousands fit into one process: one event loop, a few connections that many nodes share. It is
written against the description alone (wire/proto), so what hostd and the controller have in common
by mistake shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from gpupool.wire.proto.node import NodeApi

_CALL_S = 30.0
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))


@dataclass(frozen=True, slots=True)
class SimulatedGpu:
    """A card that is nowhere."""

    uuid: str
    model: str = "SIM-80"
    memory_mib: int = 80_000


def cards(name: str, count: int) -> tuple[SimulatedGpu, ...]:
    """The cards of a node of that name."""
    return tuple(SimulatedGpu(f"GPU-{name}-{number}") for number in range(count))


@dataclass
class SimulatedNode:
    """One node. `run` connects and serves; the rest is what a test or bench looks at and does."""

    api: NodeApi
    name: str
    gpus: tuple[SimulatedGpu, ...]
    token: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    node_id: str = ""
    incarnation: int = 0
    generation: int = 0  # the newest that was put into effect
    sequence: int = 0
    registrations: int = 0
    reports: int = 0
    wholes: int = 0  # that the controller asked for
    beat_s: float = 5.0
    silent: bool = False  # neither beats nor reports
    vgpus: dict[str, Any] = field(default_factory=dict)  # Vgpu messages by id
    sessions: dict[str, tuple[str, str]] = field(default_factory=dict)  # id: vGPU, GPU
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    _channel: Any = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _told: Any = None  # the last ReportRequest that was accepted, or would have been
    _deleting: set[str] = field(default_factory=set)
    _pools: dict[str, int] = field(default_factory=dict)
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    async def call(self, name: str, request: Any) -> Any:
        """One call, over the connection of the moment. Raises grpc.RpcError."""
        call = self.api.calls[name]
        ask = self._channel.unary_unary(
            call.path,
            request_serializer=call.request.SerializeToString,
            response_deserializer=call.reply.FromString,
        )
        return await ask(request, timeout=_CALL_S, metadata=self._metadata)

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    async def run(self, channels: Sequence[Any]) -> None:
        """Serves over one of these channels, and after a failure over the next, until cancelled."""
        for channel in itertools.cycle(channels):
            self._channel = channel
            with contextlib.suppress(grpc.RpcError, _AgainError):
                await self._connection()
            self.connected.clear()
            await asyncio.sleep(random.uniform(0.1, 0.6))  # noqa: S311  no secret

    async def _connection(self) -> None:
        if not self.node_id:
            await self.register()
        tasks = [asyncio.create_task(work) for work in (self._watch(), self._beat(), self._tell())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def register(self) -> None:
        """A new incarnation."""
        reply = await self.call(
            "Register",
            self.api.RegisterRequest(
                name=self.name,
                version="simulated",
                endpoint=f"tls://{self.name}:7440",
                labels=self.labels,
                gpus=[
                    self.api.Gpu(
                        uuid=one.uuid,
                        position=position,
                        model=one.model,
                        memory_mib=one.memory_mib,
                        pool=1,
                        healthy=True,
                    )
                    for position, one in enumerate(self.gpus)
                ],
                instance="simulated",
            ),
        )
        self.node_id, self.incarnation = reply.node_id, reply.incarnation
        self.beat_s = reply.beat_s
        self.sequence = self.generation = 0
        self._told = None
        self.registrations += 1

    async def _watch(self) -> None:
        call = self.api.calls["Watch"]
        watch = self._channel.unary_stream(
            call.path,
            request_serializer=call.request.SerializeToString,
            response_deserializer=call.reply.FromString,
        )
        request = self.api.WatchRequest(node_id=self.node_id, incarnation=self.incarnation)
        try:
            async for desired in watch(request, metadata=self._metadata):
                self.connected.set()
                if desired.generation >= self.generation:
                    self._apply(desired)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                self.node_id = ""
            raise

    def _apply(self, desired: Any) -> None:
        wanted = {one.id: one for one in desired.vgpus}
        # A connection that was made again tells nothing new, and then neither does the node.
        if desired.generation > self.generation or wanted != self.vgpus:
            self._changed.set()
        running = {vgpu for vgpu, _ in self.sessions.values()}
        self._deleting = set(desired.deleting)
        for vgpu in desired.deleting:
            self.sessions = {key: value for key, value in self.sessions.items() if value[0] != vgpu}
            running.discard(vgpu)
        ended = {one.id for one in desired.ending} & self.sessions.keys()
        for key in ended:
            del self.sessions[key]
        if ended or desired.draining:
            self._changed.set()
        kept = {key: one for key, one in self.vgpus.items() if key in running}
        self.vgpus = {**kept, **wanted}
        self._pools = {one.gpu_uuid: one.pool for one in desired.pools}
        self.generation = desired.generation

    async def _beat(self) -> None:
        while True:
            if not self.silent:
                reply = await self.call(
                    "Beat",
                    self.api.BeatRequest(node_id=self.node_id, incarnation=self.incarnation),
                )
                if not reply.known:
                    self._forget()
            await asyncio.sleep(self.beat_s * random.uniform(0.8, 1.0))  # noqa: S311

    def _forget(self) -> None:
        self.node_id = ""
        raise _AgainError

    async def _tell(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(0.02)
            self._changed.clear()
            if self.generation and not self.silent:
                async with self._lock:
                    try:
                        await self.report()
                    except BaseException:
                        self._changed.set()  # it was not heard
                        raise

    async def report(self) -> Any:
        """Tells what is new, or all where the controller does not know what was before."""
        self.sequence += 1
        whole = self.picture(self.sequence)
        reply = None
        if self._told is not None:
            reply = await self.call("ReportChanges", self.changes(self._told, whole))
            self.reports += 1
            if reply.whole:
                self.sequence += 1
                whole.sequence = self.sequence
                self.wholes += 1
        if reply is None or reply.whole:
            self._told = None
            reply = await self.call("Report", whole)
            self.reports += 1
        if not reply.known:
            self._forget()
        self._told = whole if reply.accepted else None
        return reply

    def changes(self, before: Any, now: Any) -> Any:
        """A ReportChangesRequest: the difference of two ReportRequests."""
        api = self.api
        old = {one.id: one for one in before.vgpus}
        vgpus = [one for one in now.vgpus if one.id in self._deleting or old.get(one.id) != one]
        there = {one.id for one in now.vgpus}
        sessions = {(one.id, one.vgpu_id): one for one in before.sessions}
        running = {(one.id, one.vgpu_id) for one in now.sessions}
        gpus = {one.uuid: one for one in before.gpus}
        return api.ReportChangesRequest(
            node_id=now.node_id,
            incarnation=now.incarnation,
            sequence=now.sequence,
            applied_generation=now.applied_generation,
            since=before.sequence,
            gpus=[one for one in now.gpus if gpus.get(one.uuid) != one],
            vgpus=vgpus,
            vgpus_gone=sorted((old.keys() | self._deleting) - there),
            sessions=[one for one in now.sessions if (one.id, one.vgpu_id) not in sessions],
            sessions_gone=[one for key, one in sessions.items() if key not in running],
        )

    def picture(self, sequence: int) -> Any:
        """A ReportRequest."""
        api = self.api
        return api.ReportRequest(
            node_id=self.node_id,
            incarnation=self.incarnation,
            sequence=sequence,
            applied_generation=self.generation,
            gpus=[
                api.GpuReport(uuid=one.uuid, pool=self._pools.get(one.uuid, 1), healthy=True)
                for one in self.gpus
            ],
            vgpus=[
                api.VgpuReport(
                    id=one.id, compute_percent=one.compute_percent, memory_mib=one.memory_mib
                )
                for one in self.vgpus.values()
            ],
            sessions=[
                api.SessionReport(id=key, vgpu_id=vgpu, gpu_uuid=gpu, program="simulated")
                for key, (vgpu, gpu) in self.sessions.items()
            ],
        )

    async def claim(self, vgpu: str, tenant: str = "") -> Any:
        """A client comes; the ClaimReply. Granted: it has a session until `leave`."""
        async with self._lock:
            claim_id = f"s{next(self._numbers)}"
            reply = await self.call(
                "Claim",
                self.api.ClaimRequest(
                    node_id=self.node_id,
                    incarnation=self.incarnation,
                    claim_id=claim_id,
                    vgpu=vgpu,
                    tenant=tenant,
                    program="simulated",
                    after_sequence=self.sequence,
                ),
            )
            if reply.outcome == reply.GRANTED:
                self.sessions[claim_id] = (reply.vgpu.id, reply.vgpu.gpu_uuid)
                self.vgpus[reply.vgpu.id] = reply.vgpu
                self.generation = max(self.generation, reply.generation)
                self._changed.set()
            return reply

    def speak(self) -> None:
        """No longer silent."""
        self.silent = False
        self._changed.set()

    def leave(self, session_id: str) -> None:
        """A client goes; the next report says so."""
        self.sessions.pop(session_id, None)
        self._changed.set()


class _AgainError(Exception):
    """Register again."""


def channel(
    target: str,
    ca: bytes | None = None,
    key: bytes | None = None,
    certificate: bytes | None = None,
) -> Any:
    """A connection that many nodes may share; with an authority, over TLS, and perhaps with a
    certificate of its own.
    """
    if ca is None:
        return grpc.aio.insecure_channel(target, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    return grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
