"""vGPUs: the port `Vgpus`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from gpupool.controller.core.errors import Kind, RefusedError
from gpupool.controller.core.node import DesiredVgpu
from gpupool.controller.core.ports import Page
from gpupool.controller.core.vgpu import Mode, Policy, Selector, Share, State, Strategy, Vgpu
from gpupool.controller.store.models import NodeRow, SessionRow, VgpuRow

_SELECT = select(
    VgpuRow.__table__,
    select(func.count())
    .select_from(SessionRow)
    .where(SessionRow.vgpu_id == VgpuRow.id)
    .scalar_subquery()
    .label("sessions"),
    NodeRow.endpoint,
).outerjoin(NodeRow, NodeRow.id == VgpuRow.node_id)
_INSERT = insert(VgpuRow)
# Those that reports need are made once: making one costs more than running it.
_GET = _SELECT.where(VgpuRow.id == bindparam("vgpu"))
_OF_NODE = _SELECT.where(VgpuRow.node_id == bindparam("node")).order_by(VgpuRow.id)
_DESIRED = (
    select(
        VgpuRow.node_id,
        VgpuRow.id,
        VgpuRow.name,
        VgpuRow.tenant_id,
        VgpuRow.gpu_uuid,
        VgpuRow.mode,
        VgpuRow.policy,
        VgpuRow.priority,
        VgpuRow.compute_percent,
        VgpuRow.memory_mib,
        VgpuRow.state,
    )
    .where(VgpuRow.node_id.in_(bindparam("nodes", expanding=True)))
    .order_by(VgpuRow.id)
)
_MODES = {one.value: one for one in Mode}  # a call of the class costs five times as much
_POLICIES = {one.value: one for one in Policy}
_UNSETTLED = _SELECT.where(
    VgpuRow.node_id.in_(bindparam("nodes", expanding=True)),
    or_(
        VgpuRow.state != State.READY.value,
        VgpuRow.compute_held_percent != VgpuRow.compute_percent,
        VgpuRow.memory_held_mib != VgpuRow.memory_mib,
        VgpuRow.id.in_(bindparam("named", expanding=True)),
    ),
).order_by(VgpuRow.id)
_SET_READY = (
    update(VgpuRow)
    .where(VgpuRow.id.in_(bindparam("vgpus", expanding=True)))
    .values(state=State.READY.value, version=VgpuRow.version + 1)
)
_AT_ONCE = 500  # values of a statement: SQLite bounds them
_CHANGING = (
    "policy",
    "priority",
    "compute_percent",
    "memory_mib",
    "compute_held_percent",
    "memory_held_mib",
    "state",
    "gpu_id",
    "gpu_uuid",
    "node_id",
    "node_name",
    "generation",
    "version",
)
_PUT = (
    update(VgpuRow)
    .where(VgpuRow.id == bindparam("vgpu"))
    .values({name: bindparam(f"its_{name}") for name in _CHANGING})
)


class SqlVgpus:
    """See the port."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, vgpu_id: str) -> Vgpu | None:
        """See the port."""
        row = self._connection.execute(_GET, {"vgpu": vgpu_id}).first()
        return _vgpu(row) if row else None

    def by_name(self, tenant_id: str, name: str) -> Vgpu | None:
        """See the port."""
        found = _SELECT.where(VgpuRow.tenant_id == tenant_id, VgpuRow.name == name)
        row = self._connection.execute(found).first()
        return _vgpu(row) if row else None

    def page(
        self, page: Page, tenant_id: str | None = None, node_id: str | None = None
    ) -> list[Vgpu]:
        """See the port."""
        found = _SELECT.where(VgpuRow.id > page.after).order_by(VgpuRow.id).limit(page.limit)
        if tenant_id is not None:
            found = found.where(VgpuRow.tenant_id == tenant_id)
        if node_id is not None:
            found = found.where(VgpuRow.node_id == node_id)
        return [_vgpu(row) for row in self._connection.execute(found)]

    def of_node(self, node_id: str) -> list[Vgpu]:
        """See the port."""
        return [_vgpu(row) for row in self._connection.execute(_OF_NODE, {"node": node_id})]

    def desired(self, node_ids: Collection[str]) -> dict[str, tuple[list[DesiredVgpu], list[str]]]:
        """See the port."""
        found: dict[str, tuple[list[DesiredVgpu], list[str]]] = {}
        for row in self._connection.execute(_DESIRED, {"nodes": list(node_ids)}):
            node_id, key, name, tenant_id, gpu, mode, policy, priority, compute, memory, state = row
            wanted, deleting = found.setdefault(str(node_id), ([], []))
            if state == State.DELETING.value:
                deleting.append(key)
                continue
            kinds = _MODES[mode], _POLICIES[policy]
            share = Share(compute, memory)
            wanted.append(DesiredVgpu(key, name, tenant_id, gpu or "", *kinds, priority, share))
        return found

    def unsettled(self, node_ids: Collection[str], named: Collection[str]) -> list[Vgpu]:
        """See the port."""
        values = {"nodes": list(node_ids), "named": list(named)}
        return [_vgpu(row) for row in self._connection.execute(_UNSETTLED, values)]

    def add(self, vgpu: Vgpu) -> None:
        """See the port."""
        try:
            self._connection.execute(_INSERT, row_of(vgpu))
        except IntegrityError:
            raise RefusedError(
                Kind.NAME_TAKEN, f"The tenant has a vGPU {vgpu.name!r} already."
            ) from None

    def put(self, vgpu: Vgpu) -> None:
        """See the port."""
        values = {f"its_{name}": value for name, value in _changing(vgpu).items()}
        self._connection.execute(_PUT, {"vgpu": vgpu.id, **values})

    def set_ready(self, vgpu_ids: Sequence[str]) -> None:
        """See the port."""
        for start in range(0, len(vgpu_ids), _AT_ONCE):
            some = list(vgpu_ids[start : start + _AT_ONCE])
            self._connection.execute(_SET_READY, {"vgpus": some})

    def set_used(self, memory_used_mib: Mapping[str, int]) -> None:
        """See the port."""
        for vgpu_id, used in sorted(memory_used_mib.items()):
            self._connection.execute(
                update(VgpuRow)
                .where(VgpuRow.id == vgpu_id, VgpuRow.memory_used_mib != used)
                .values(memory_used_mib=used)
            )

    def remove(self, vgpu_id: str) -> None:
        """See the port."""
        self._connection.execute(delete(VgpuRow).where(VgpuRow.id == vgpu_id))


def row_of(vgpu: Vgpu) -> dict[str, Any]:
    """All columns of a new one."""
    selector = vgpu.selector
    return {
        "id": vgpu.id,
        "tenant_id": vgpu.tenant_id,
        "name": vgpu.name,
        "mode": vgpu.mode.value,
        "selector": {
            "models": list(selector.models),
            "gpu_memory_mib": selector.gpu_memory_mib,
            "node": selector.node,
            "labels": dict(selector.labels),
        },
        "strategy": vgpu.strategy.value,
        "group_id": vgpu.group_id,
        "memory_used_mib": 0,
        "created_ms": vgpu.created_ms,
        **_changing(vgpu),
    }


def _changing(vgpu: Vgpu) -> dict[str, Any]:
    return {
        "policy": vgpu.policy.value,
        "priority": vgpu.priority,
        "compute_percent": vgpu.share.compute_percent,
        "memory_mib": vgpu.share.memory_mib,
        "compute_held_percent": vgpu.held.compute_percent,
        "memory_held_mib": vgpu.held.memory_mib,
        "state": vgpu.state.value,
        "gpu_id": vgpu.gpu_id,
        "gpu_uuid": vgpu.gpu_uuid,
        "node_id": vgpu.node_id,
        "node_name": vgpu.node_name,
        "generation": vgpu.generation,
        "version": vgpu.version,
    }


def _vgpu(row: Any) -> Vgpu:
    selector = dict(row.selector)
    return Vgpu(
        id=row.id,
        name=row.name,
        tenant_id=row.tenant_id,
        mode=Mode(row.mode),
        policy=Policy(row.policy),
        priority=row.priority,
        share=Share(row.compute_percent, row.memory_mib),
        state=State(row.state),
        selector=Selector(**{**selector, "models": tuple(selector["models"])}),
        strategy=Strategy(row.strategy),
        held=Share(row.compute_held_percent, row.memory_held_mib),
        gpu_id=row.gpu_id,
        gpu_uuid=row.gpu_uuid,
        node_id=row.node_id,
        node_name=row.node_name,
        endpoint=row.endpoint,
        group_id=row.group_id,
        memory_used_mib=row.memory_used_mib,
        sessions=row.sessions,
        generation=row.generation,
        version=row.version,
        created_ms=row.created_ms,
    )
