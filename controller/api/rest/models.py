"""What goes out over REST. The OpenAPI document is made from these and from given.py."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from gpupool.controller.api.rest.context import rfc3339
from gpupool.controller.api.rest.given import QuotaModel
from gpupool.controller.core.event import AuditEntry, Event
from gpupool.controller.core.gpu import Gpu, Pool
from gpupool.controller.core.node import Drain, Node, NodeState, Session
from gpupool.controller.core.operation import Operation, OperationState
from gpupool.controller.core.session import name_of
from gpupool.controller.core.tenant import Tenant
from gpupool.controller.core.token import Role, Token
from gpupool.controller.core.vgpu import Mode, Policy, State, Strategy, Vgpu


class VgpuOut(BaseModel):
    """A vGPU. `held` is what is set aside for it now."""

    id: str
    name: str
    tenant_id: str
    mode: Mode
    policy: Policy
    priority: int
    compute_percent: int
    memory_mib: int
    compute_held_percent: int
    memory_held_mib: int
    memory_used_mib: int
    state: State
    strategy: Strategy
    selector: dict[str, Any]
    gpu_id: str | None
    gpu_uuid: str | None
    node: str | None
    endpoint: str | None = Field(description="where a client dials")
    group_id: str | None
    sessions: int
    version: int
    created_at: str

    @staticmethod
    def of(vgpu: Vgpu) -> VgpuOut:
        """From the core."""
        selector = vgpu.selector
        return VgpuOut.model_construct(
            id=vgpu.id,
            name=vgpu.name,
            tenant_id=vgpu.tenant_id,
            mode=vgpu.mode,
            policy=vgpu.policy,
            priority=vgpu.priority,
            compute_percent=vgpu.share.compute_percent,
            memory_mib=vgpu.share.memory_mib,
            compute_held_percent=vgpu.held.compute_percent,
            memory_held_mib=vgpu.held.memory_mib,
            memory_used_mib=vgpu.memory_used_mib,
            state=vgpu.state,
            strategy=vgpu.strategy,
            selector={
                "models": list(selector.models),
                "gpu_memory_mib": selector.gpu_memory_mib,
                "node": selector.node,
                "labels": dict(selector.labels),
            },
            gpu_id=vgpu.gpu_id,
            gpu_uuid=vgpu.gpu_uuid,
            node=vgpu.node_name,
            endpoint=vgpu.endpoint,
            group_id=vgpu.group_id,
            sessions=vgpu.sessions,
            version=vgpu.version,
            created_at=rfc3339(vgpu.created_ms),
        )


class GroupOut(BaseModel):
    """The vGPUs of one request, in its order."""

    group_id: str | None
    items: list[VgpuOut]


class PlaceOut(BaseModel):
    """A node that had room when it was asked. Nothing is held there."""

    node: str
    endpoint: str


class PlacesOut(BaseModel):
    """Where an on-demand vGPU would find room now, the best first."""

    items: list[PlaceOut]


class NodeOut(BaseModel):
    """A node."""

    id: str
    name: str
    state: NodeState
    cordoned: bool
    drain: Drain
    drain_until: str | None = Field(description="then its sessions are ended; null: never")
    labels: dict[str, str]
    endpoint: str
    agent_version: str
    generation: int
    applied_generation: int
    version: int
    created_at: str
    heard_at: str

    @staticmethod
    def of(node: Node) -> NodeOut:
        """From the core."""
        return NodeOut(
            id=node.id,
            name=node.name,
            state=node.state,
            cordoned=node.cordoned,
            drain=node.drain,
            drain_until=None if node.drain_until_ms is None else rfc3339(node.drain_until_ms),
            labels=dict(node.labels),
            endpoint=node.endpoint,
            agent_version=node.agent_version,
            generation=node.generation,
            applied_generation=node.applied_generation,
            version=node.version,
            created_at=rfc3339(node.created_ms),
            heard_at=rfc3339(node.heard_ms),
        )


class GpuOut(BaseModel):
    """A GPU."""

    id: str
    uuid: str
    node_id: str
    node: str
    position: int
    model: str
    pool: Pool
    pool_wanted: Pool
    healthy: bool
    present: bool
    licensed: bool
    usable: bool = Field(description="new vGPUs may be placed here")
    memory_mib: int
    overhead_mib: int
    memory_held_mib: int
    memory_free_mib: int
    memory_used_mib: int
    compute_held_percent: int
    compute_free_percent: int
    load_percent: int
    version: int

    @staticmethod
    def of(gpu: Gpu) -> GpuOut:
        """From the core."""
        return GpuOut(
            id=gpu.id,
            uuid=gpu.uuid,
            node_id=gpu.node_id,
            node=gpu.node_name,
            position=gpu.position,
            model=gpu.model,
            pool=gpu.pool,
            pool_wanted=gpu.pool_wanted,
            healthy=gpu.healthy,
            present=gpu.present,
            licensed=gpu.licensed,
            usable=gpu.usable,
            memory_mib=gpu.memory_mib,
            overhead_mib=gpu.overhead_mib,
            memory_held_mib=gpu.memory_held_mib,
            memory_free_mib=max(gpu.memory_free_mib, 0),
            memory_used_mib=gpu.memory_used_mib,
            compute_held_percent=gpu.compute_held_percent,
            compute_free_percent=max(gpu.compute_free_percent, 0),
            load_percent=gpu.load_percent,
            version=gpu.version,
        )


class SessionOut(BaseModel):
    """A client on a node."""

    id: str = Field(description="of the whole pool: NODE_ID.NUMBER")
    number: str = Field(description="on its node")
    node_id: str
    node: str
    vgpu_id: str | None = Field(description="null: not one of the controller's")
    gpu_id: str | None
    tenant_id: str | None
    program: str
    started_at: str
    state: Literal["running", "ending"]

    @staticmethod
    def of(session: Session) -> SessionOut:
        """From the core."""
        return SessionOut(
            id=name_of(session),
            number=session.id,
            node_id=session.node_id,
            node=session.node_name,
            vgpu_id=session.vgpu_id or None,
            gpu_id=session.gpu_id,
            tenant_id=session.tenant_id,
            program=session.program,
            started_at=rfc3339(session.started_ms),
            state="ending" if session.ending else "running",
        )


class OperationOut(BaseModel):
    """A change that takes longer than a request."""

    id: str
    kind: str
    subject: str
    state: OperationState
    progress_percent: int
    message: str
    tenant_id: str | None
    created_at: str
    updated_at: str

    @staticmethod
    def of(operation: Operation) -> OperationOut:
        """From the core."""
        return OperationOut(
            id=operation.id,
            kind=operation.kind,
            subject=operation.subject,
            state=operation.state,
            progress_percent=operation.progress_percent,
            message=operation.message,
            tenant_id=operation.tenant_id,
            created_at=rfc3339(operation.created_ms),
            updated_at=rfc3339(operation.updated_ms),
        )


class EventOut(BaseModel):
    """Something that happened."""

    number: int
    time: str
    kind: str
    subject: str
    message: str
    tenant_id: str | None
    node_id: str | None
    facts: dict[str, Any]

    @staticmethod
    def of(event: Event) -> EventOut:
        """From the core."""
        return EventOut(
            number=event.number,
            time=rfc3339(event.time_ms),
            kind=event.kind,
            subject=event.subject,
            message=event.message,
            tenant_id=event.tenant_id,
            node_id=event.node_id,
            facts=dict(event.facts),
        )


class AuditOut(BaseModel):
    """A change that somebody asked for."""

    number: int
    time: str
    action: str
    subject: str
    token_id: str
    role: str
    request_id: str
    tenant_id: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    @staticmethod
    def of(entry: AuditEntry) -> AuditOut:
        """From the core."""
        return AuditOut(
            number=entry.number,
            time=rfc3339(entry.time_ms),
            action=entry.action,
            subject=entry.subject,
            token_id=entry.token_id,
            role=entry.role,
            request_id=entry.request_id,
            tenant_id=entry.tenant_id,
            before=dict(entry.before) if entry.before is not None else None,
            after=dict(entry.after) if entry.after is not None else None,
        )


class UseOut(BaseModel):
    """What is held now."""

    vgpus: int
    compute_percent: int
    memory_mib: int


class TenantOut(BaseModel):
    """A tenant."""

    id: str
    name: str
    quota: QuotaModel
    use: UseOut
    version: int
    created_at: str

    @staticmethod
    def of(tenant: Tenant) -> TenantOut:
        """From the core."""
        quota, use = tenant.quota, tenant.use
        return TenantOut(
            id=tenant.id,
            name=tenant.name,
            quota=QuotaModel.model_construct(
                vgpus=quota.vgpus,
                compute_percent=quota.compute_percent,
                memory_mib=quota.memory_mib,
            ),
            use=UseOut(
                vgpus=use.vgpus, compute_percent=use.compute_percent, memory_mib=use.memory_mib
            ),
            version=tenant.version,
            created_at=rfc3339(tenant.created_ms),
        )


class TokenOut(BaseModel):
    """A token, without its secret."""

    id: str
    name: str
    role: Role
    tenant_id: str | None
    node: str | None
    created_at: str
    expires_at: str | None

    @staticmethod
    def of(token: Token) -> TokenOut:
        """From the core."""
        return TokenOut(
            id=token.id,
            name=token.name,
            role=token.role,
            tenant_id=token.tenant_id,
            node=token.node_name,
            created_at=rfc3339(token.created_ms),
            expires_at=None if token.expires_ms is None else rfc3339(token.expires_ms),
        )


class NewTokenOut(TokenOut):
    """The only answer that has the secret."""

    secret: str


class LicenceOut(BaseModel):
    """What may be given out."""

    id: str | None
    holder: str | None
    gpus: int
    gpus_known: int
    expires_at: str | None
    expired: bool


class VersionOut(BaseModel):
    """Who answers."""

    version: str
    api: str
