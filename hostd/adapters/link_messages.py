"""hostd's side of wire/proto/gpupool/v1/node.proto: values to messages and back.

What the controller says is checked here, once. Raises LinkError for what makes no sense; what a
newer controller may add is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpupool.hostd.core.differences import Difference
from gpupool.hostd.core.link import (
    Claim,
    ClaimAnswer,
    ClaimOutcome,
    Desired,
    DesiredPool,
    DesiredVgpu,
    GpuLoad,
    GpuPlace,
    GpuState,
    Introduction,
    LinkError,
    Picture,
    Registration,
    SessionEnd,
    SessionFact,
    VgpuState,
)
from gpupool.hostd.core.vgpu import Quota, SharePolicy
from gpupool.wire.proto.node import NodeApi

_PLACES = {1: GpuPlace.POOLED, 2: GpuPlace.DRAINING, 3: GpuPlace.NATIVE}
_PLACE_NUMBERS = {place: number for number, place in _PLACES.items()}
_POLICIES = {1: SharePolicy.ELASTIC, 2: SharePolicy.HARD}
_ON_DEMAND = {1: False, 2: True}
_OUTCOMES = {1: ClaimOutcome.GRANTED, 2: ClaimOutcome.WAIT, 3: ClaimOutcome.REFUSED}
UNKNOWN_OUTCOME = 4  # register again
_SLOWEST_BEAT_S = 10.0  # a lease is 30 s: docs/controller.md


class LinkMessages:
    """Makes requests and reads answers."""

    def __init__(self, api: NodeApi) -> None:
        self._api = api

    def register(self, node: Introduction) -> Any:
        """A RegisterRequest."""
        gpus = [
            self._api.Gpu(
                uuid=one.uuid,
                position=one.position,
                model=one.model,
                memory_mib=one.memory_mib,
                pool=_PLACE_NUMBERS[one.place],
                healthy=True,
            )
            for one in node.gpus
        ]
        return self._api.RegisterRequest(
            name=node.name,
            version=node.version,
            endpoint=node.endpoint,
            labels=dict(node.labels),
            gpus=gpus,
            instance=node.instance,
        )

    def registered(self, reply: Any) -> Registration:
        """What a RegisterReply says."""
        if not reply.node_id or not reply.incarnation:
            raise LinkError("the controller's answer to the registration is empty")
        beat_s = reply.beat_s if 0.05 <= reply.beat_s <= _SLOWEST_BEAT_S else 5.0
        return Registration(reply.node_id, reply.incarnation, beat_s)

    def watch(self, me: Registration) -> Any:
        """A WatchRequest."""
        return self._api.WatchRequest(node_id=me.node_id, incarnation=me.incarnation)

    def beat(self, me: Registration, loads: Sequence[GpuLoad]) -> Any:
        """A BeatRequest."""
        return self._api.BeatRequest(
            node_id=me.node_id,
            incarnation=me.incarnation,
            use=[
                self._api.GpuUse(
                    uuid=one.uuid,
                    load_percent=one.load_percent,
                    memory_used_mib=one.memory_used_mib,
                )
                for one in loads
            ],
        )

    def report(self, me: Registration, sequence: int, picture: Picture) -> Any:
        """A ReportRequest."""
        return self._api.ReportRequest(
            node_id=me.node_id,
            incarnation=me.incarnation,
            sequence=sequence,
            applied_generation=picture.applied_generation,
            gpus=[self._gpu(one) for one in picture.gpus],
            vgpus=[self._vgpu(one) for one in picture.vgpus],
            sessions=[self._session(one) for one in picture.sessions],
        )

    def changes(self, me: Registration, sequence: int, new: Difference) -> Any:
        """A ReportChangesRequest."""
        return self._api.ReportChangesRequest(
            node_id=me.node_id,
            incarnation=me.incarnation,
            sequence=sequence,
            applied_generation=new.applied_generation,
            since=new.since,
            gpus=[self._gpu(one) for one in new.gpus],
            vgpus=[self._vgpu(one) for one in new.vgpus],
            vgpus_gone=list(new.vgpus_gone),
            sessions=[self._session(one) for one in new.sessions],
            sessions_gone=[self._session(one) for one in new.sessions_gone],
        )

    def _gpu(self, one: GpuState) -> Any:
        return self._api.GpuReport(
            uuid=one.uuid,
            pool=_PLACE_NUMBERS[one.place],
            healthy=one.healthy,
            overhead_mib=one.overhead_mib,
            local_compute_percent=max(0, one.local_compute_percent),
            local_memory_mib=max(0, one.local_memory_mib),
            pool_error=one.error,
        )

    def _vgpu(self, one: VgpuState) -> Any:
        return self._api.VgpuReport(
            id=one.id,
            compute_percent=one.compute_percent,
            memory_mib=one.memory_mib,
            memory_used_mib=one.memory_used_mib,
        )

    def _session(self, one: SessionFact) -> Any:
        return self._api.SessionReport(
            id=one.id,
            vgpu_id=one.vgpu,
            gpu_uuid=one.gpu,
            program=one.program,
            started_ms=one.started_ms,
        )

    def claim(self, me: Registration, claim: Claim, after_sequence: int) -> Any:
        """A ClaimRequest."""
        return self._api.ClaimRequest(
            node_id=me.node_id,
            incarnation=me.incarnation,
            claim_id=claim.id,
            vgpu=claim.vgpu,
            tenant=claim.tenant,
            program=claim.program,
            after_sequence=after_sequence,
            other_gpus=claim.other_gpus,
        )

    def claimed(self, reply: Any) -> ClaimAnswer:
        """What a ClaimReply says that is not UNKNOWN_OUTCOME."""
        outcome = _OUTCOMES.get(reply.outcome)
        if outcome is None:
            raise LinkError(f"the controller answered a claim by {reply.outcome}; update gpupool")
        vgpu = _vgpu(reply.vgpu) if outcome is ClaimOutcome.GRANTED else None
        return ClaimAnswer(outcome, reply.text, vgpu, reply.generation)

    def release(self, me: Registration, claim_id: str) -> Any:
        """A ReleaseRequest."""
        return self._api.ReleaseRequest(
            node_id=me.node_id, incarnation=me.incarnation, claim_id=claim_id
        )

    def desired(self, message: Any) -> Desired:
        """What a Desired says."""
        pools = []
        for one in message.pools:
            place = _PLACES.get(one.pool)
            if place not in (GpuPlace.POOLED, GpuPlace.NATIVE):
                raise LinkError(f"GPU {one.gpu_uuid} is to go to pool {one.pool}; update gpupool")
            deadline_s = one.deadline_s if one.HasField("deadline_s") else None
            pools.append(DesiredPool(one.gpu_uuid, place, deadline_s))
        return Desired(
            message.generation,
            tuple(_vgpu(one) for one in message.vgpus),
            tuple(pools),
            tuple(message.deleting),
            tuple(SessionEnd(one.id, one.started_ms) for one in message.ending),
            message.draining,
        )


def _vgpu(message: Any) -> DesiredVgpu:
    policy, on_demand = _POLICIES.get(message.policy), _ON_DEMAND.get(message.mode)
    if policy is None or on_demand is None or not message.id or not message.gpu_uuid:
        raise LinkError(f"vGPU {message.id} is not one that this version knows; update gpupool")
    quota = Quota(message.compute_percent, message.memory_mib, policy, message.priority)
    return DesiredVgpu(
        id=message.id,
        name=message.name,
        tenant=message.tenant_id,
        tenant_name=message.tenant_name,
        gpu=message.gpu_uuid,
        on_demand=on_demand,
        quota=quota,
    )
