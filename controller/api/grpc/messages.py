"""The controller's side of node.proto: messages to values and back.

Whatever a node says is checked here, once: sizes, ranges, characters. Raises RefusedError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpupool.controller.core.claims import ClaimRequest
from gpupool.controller.core.errors import Kind, RefusedError
from gpupool.controller.core.gpu import GpuFacts, GpuReport, GpuUse, Pool
from gpupool.controller.core.node import (
    Changes,
    Desired,
    DesiredVgpu,
    Registered,
    Registration,
    Report,
    Reported,
    SessionReport,
)
from gpupool.controller.core.vgpu import Mode, Policy, VgpuReport
from gpupool.wire.proto.node import NodeApi

MOST_GPUS = 64
MOST_VGPUS = 8192  # of one node
MOST_SESSIONS = 16384  # of one node
MOST_LABELS = 64
_MOST_TEXT = 255
_MOST_ID = 64
_MOST_MIB = 1 << 24
_MOST_NUMBER = 1 << 62
_POOLS = {1: Pool.POOLED, 2: Pool.DRAINING, 3: Pool.NATIVE}
_POOL_NUMBERS = {pool: number for number, pool in _POOLS.items()}
_POLICY_NUMBERS = {Policy.ELASTIC: 1, Policy.HARD: 2}
_MODE_NUMBERS = {Mode.RESERVED: 1, Mode.ON_DEMAND: 2}


def _text(value: str, what: str, most: int = _MOST_TEXT) -> str:
    if len(value) > most or not value.isprintable():
        raise RefusedError(
            Kind.INVALID, f"{what}: allowed are {most} characters that can be printed."
        )
    return value


def _number(value: int, what: str, most: int) -> int:
    if value > most:
        raise RefusedError(Kind.INVALID, f"{what} is {value}; allowed is 0 to {most}.")
    return value


def _few(values: Iterable[Any], what: str, most: int) -> list[Any]:
    found = list(values)
    if len(found) > most:
        raise RefusedError(Kind.INVALID, f"{len(found)} {what}; allowed are {most}.")
    return found


def _pool(number: int) -> Pool:
    pool = _POOLS.get(number)
    if pool is None:
        raise RefusedError(Kind.INVALID, f"pool {number} is not known; update the controller.")
    return pool


def node_of(request: Any) -> tuple[str, int]:
    """Which node speaks, and its incarnation."""
    node_id = _text(request.node_id, "node_id", _MOST_ID)
    return node_id, _number(request.incarnation, "incarnation", _MOST_NUMBER)


def registration(request: Any) -> Registration:
    """A RegisterRequest."""
    labels = {
        _text(key, "label", 63): _text(value, f"label {key}")
        for key, value in _few(request.labels.items(), "labels", MOST_LABELS)
    }
    gpus = tuple(
        GpuFacts(
            uuid=_text(one.uuid, "uuid", _MOST_ID),
            position=_number(one.position, "position", 1 << 16),
            model=_text(one.model, "model"),
            memory_mib=_number(one.memory_mib, "memory_mib", _MOST_MIB),
            pool=_pool(one.pool),
            healthy=one.healthy,
        )
        for one in _few(request.gpus, "GPUs", MOST_GPUS)
    )
    return Registration(
        name=_text(request.name, "name", 63),
        gpus=gpus,
        labels=labels,
        endpoint=_text(request.endpoint, "endpoint"),
        agent_version=_text(request.version, "version", 64),
    )


def report(request: Any) -> Report:
    """A ReportRequest."""
    node_id, incarnation = node_of(request)
    return Report(
        node_id=node_id,
        incarnation=incarnation,
        sequence=_number(request.sequence, "sequence", _MOST_NUMBER),
        applied_generation=_number(request.applied_generation, "applied_generation", _MOST_NUMBER),
        gpus=_gpu_reports(request.gpus),
        vgpus=_vgpu_reports(request.vgpus),
        sessions=_session_reports(request.sessions),
    )


def changes(request: Any) -> Changes:
    """A ReportChangesRequest."""
    node_id, incarnation = node_of(request)
    return Changes(
        node_id=node_id,
        incarnation=incarnation,
        sequence=_number(request.sequence, "sequence", _MOST_NUMBER),
        applied_generation=_number(request.applied_generation, "applied_generation", _MOST_NUMBER),
        since=_number(request.since, "since", _MOST_NUMBER),
        gpus=_gpu_reports(request.gpus),
        vgpus=_vgpu_reports(request.vgpus),
        vgpus_gone=tuple(
            _text(one, "id", _MOST_ID) for one in _few(request.vgpus_gone, "vGPUs", MOST_VGPUS)
        ),
        sessions=_session_reports(request.sessions),
        sessions_gone=tuple(
            (_text(one.id, "id", _MOST_ID), _text(one.vgpu_id, "vgpu_id", _MOST_ID))
            for one in _few(request.sessions_gone, "sessions", MOST_SESSIONS)
        ),
    )


def _gpu_reports(told: Iterable[Any]) -> tuple[GpuReport, ...]:
    return tuple(_gpu_report(one) for one in _few(told, "GPUs", MOST_GPUS))


def _vgpu_reports(told: Iterable[Any]) -> tuple[VgpuReport, ...]:
    return tuple(
        VgpuReport(
            id=_text(one.id, "id", _MOST_ID),
            compute_percent=_number(one.compute_percent, "compute_percent", 100),
            memory_mib=_number(one.memory_mib, "memory_mib", _MOST_MIB),
            memory_used_mib=_number(one.memory_used_mib, "memory_used_mib", _MOST_MIB),
        )
        for one in _few(told, "vGPUs", MOST_VGPUS)
    )


def _session_reports(told: Iterable[Any]) -> tuple[SessionReport, ...]:
    return tuple(
        SessionReport(
            id=_text(one.id, "id", _MOST_ID),
            vgpu_id=_text(one.vgpu_id, "vgpu_id", _MOST_ID),
            gpu_uuid=_text(one.gpu_uuid, "gpu_uuid", _MOST_ID),
            program=_program(one.program),
            started_ms=_number(one.started_ms, "started_ms", _MOST_NUMBER),
        )
        for one in _few(told, "sessions", MOST_SESSIONS)
    )


def _gpu_report(one: Any) -> GpuReport:
    return GpuReport(
        uuid=_text(one.uuid, "uuid", _MOST_ID),
        pool=_pool(one.pool),
        healthy=one.healthy,
        overhead_mib=_number(one.overhead_mib, "overhead_mib", _MOST_MIB),
        local_compute_percent=_number(one.local_compute_percent, "local_compute_percent", 100),
        local_memory_mib=_number(one.local_memory_mib, "local_memory_mib", _MOST_MIB),
        pool_error=one.pool_error[:_MOST_TEXT] if one.pool_error.isprintable() else "unreadable",
    )


def _program(text: str) -> str:
    """A program may have any name: what cannot be printed is no reason to refuse a report."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:64])


def uses(request: Any) -> tuple[GpuUse, ...]:
    """What a BeatRequest says of GPUs."""
    return tuple(
        GpuUse(
            uuid=_text(one.uuid, "uuid", _MOST_ID),
            load_percent=_number(one.load_percent, "load_percent", 100),
            memory_used_mib=_number(one.memory_used_mib, "memory_used_mib", _MOST_MIB),
        )
        for one in _few(request.use, "GPUs", MOST_GPUS)
    )


def claim_id(request: Any) -> str:
    """Of a ClaimRequest or ReleaseRequest."""
    return _text(request.claim_id, "claim_id", _MOST_ID)


def tenant(request: Any) -> str:
    """Of a ClaimRequest: id or name, or empty."""
    return _text(request.tenant, "tenant", _MOST_ID)


def claim(request: Any, tenant_id: str) -> ClaimRequest:
    """A ClaimRequest, of that tenant."""
    return ClaimRequest(
        node_id=node_of(request)[0],
        session_id=claim_id(request),
        vgpu=_text(request.vgpu, "vgpu", _MOST_ID),
        tenant_id=tenant_id,
        after_sequence=_number(request.after_sequence, "after_sequence", _MOST_NUMBER),
        program=_program(request.program),
        other_gpus=tuple(
            _text(one, "other_gpus", _MOST_ID)
            for one in _few(request.other_gpus, "GPUs", MOST_GPUS)
        ),
    )


class Replies:
    """Makes answers."""

    def __init__(self, api: NodeApi) -> None:
        self._api = api

    def registered(self, done: Registered, beat_s: float) -> Any:
        """A RegisterReply."""
        return self._api.RegisterReply(
            node_id=done.node_id,
            incarnation=done.incarnation,
            generation=done.generation,
            beat_s=beat_s,
        )

    def reported(self, done: Reported) -> Any:
        """A ReportReply."""
        return self._api.ReportReply(
            accepted=done.accepted,
            known=done.known,
            generation=done.generation,
            whole=done.whole,
        )

    def beaten(self, *, known: bool) -> Any:
        """A BeatReply."""
        return self._api.BeatReply(known=known)

    def desired(self, wanted: Desired, tenants: Mapping[str, str]) -> Any:
        """A Desired. `tenants`: their names by id."""
        api = self._api
        pools = []
        for one in wanted.pools:
            pool = api.GpuPool(gpu_uuid=one.gpu_uuid, pool=_POOL_NUMBERS[one.pool])
            if one.deadline_s is not None:
                pool.deadline_s = one.deadline_s
            pools.append(pool)
        return api.Desired(
            generation=wanted.generation,
            vgpus=[self.vgpu(one, tenants.get(one.tenant_id, "")) for one in wanted.vgpus],
            pools=pools,
            deleting=list(wanted.deleting),
            ending=[api.SessionEnd(id=one.id, started_ms=one.started_ms) for one in wanted.ending],
            draining=wanted.draining,
        )

    def vgpu(self, one: DesiredVgpu, tenant_name: str) -> Any:
        """A Vgpu."""
        return self._api.Vgpu(
            id=one.id,
            name=one.name,
            tenant_id=one.tenant_id,
            tenant_name=tenant_name,
            gpu_uuid=one.gpu_uuid,
            mode=_MODE_NUMBERS[one.mode],
            policy=_POLICY_NUMBERS[one.policy],
            priority=one.priority,
            compute_percent=one.share.compute_percent,
            memory_mib=one.share.memory_mib,
        )

    def granted(self, vgpu: Any, generation: int) -> Any:
        """A ClaimReply."""
        reply = self._api.ClaimReply
        return reply(outcome=reply.GRANTED, vgpu=vgpu, generation=generation)

    def not_granted(self, text: str, *, wait: bool) -> Any:
        """A ClaimReply."""
        reply = self._api.ClaimReply
        return reply(outcome=reply.WAIT if wait else reply.REFUSED, text=text)

    def unknown(self) -> Any:
        """A ClaimReply to a node that has to register again."""
        reply = self._api.ClaimReply
        return reply(outcome=reply.UNKNOWN)

    def released(self) -> Any:
        """A ReleaseReply."""
        return self._api.ReleaseReply()
