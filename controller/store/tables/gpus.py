"""GPUs and their room: the port `Gpus`."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Executable,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    update,
)

from gpupool.controller.core.gpu import FULL_PERCENT, Gpu, Pool
from gpupool.controller.core.node import DesiredPool, NodeState
from gpupool.controller.core.operation import OperationState
from gpupool.controller.core.ports import Page
from gpupool.controller.core.scheduler import Candidate, Shortfall, Wanted
from gpupool.controller.core.vgpu import Share, Strategy
from gpupool.controller.store.models import GpuRow, NodeRow, OperationRow, UseRow
from gpupool.controller.store.tables.demands import (
    Shape,
    demands,
    fitting,
    order,
    reason,
    shape_of,
)

_SELECT = (
    select(
        GpuRow.__table__,
        NodeRow.name.label("node_name"),
        UseRow.load_percent,
        UseRow.memory_used_mib,
    )
    .join(NodeRow, NodeRow.id == GpuRow.node_id)
    .outerjoin(UseRow, UseRow.gpu_id == GpuRow.id)
)
_OF_NODE = _SELECT.where(GpuRow.node_id == bindparam("node")).order_by(GpuRow.position, GpuRow.id)
_DESIRED = (
    select(GpuRow.node_id, GpuRow.uuid, GpuRow.pool_wanted, GpuRow.pool_deadline_s)
    .where(GpuRow.node_id.in_(bindparam("nodes", expanding=True)), GpuRow.present)
    .order_by(GpuRow.position, GpuRow.id)
)
_POOLS = {one.value: one for one in Pool}  # a call of the class costs five times as much
_ARRIVED = (
    select(GpuRow.uuid)
    .join(OperationRow, OperationRow.subject == GpuRow.id)
    .where(
        GpuRow.node_id == bindparam("node"),
        GpuRow.pool == GpuRow.pool_wanted,
        OperationRow.state == OperationState.RUNNING.value,
    )
)
_ARRIVING = (
    select(GpuRow.node_id)
    .join(OperationRow, OperationRow.subject == GpuRow.id)
    .where(
        GpuRow.node_id.in_(bindparam("nodes", expanding=True)),
        GpuRow.pool == GpuRow.pool_wanted,
        OperationRow.state == OperationState.RUNNING.value,
    )
    .distinct()
)
CANDIDATES = select(
    GpuRow.id,
    GpuRow.uuid,
    GpuRow.node_id,
    NodeRow.name,
    NodeRow.endpoint,
    GpuRow.memory_mib,
    GpuRow.compute_free_percent,
    GpuRow.memory_free_mib,
).join(NodeRow, NodeRow.id == GpuRow.node_id)


def moved(sign: int) -> dict[Any, Any]:
    """What becomes of a GPU's room when a share is set aside (1) or given back (-1)."""
    compute: ColumnElement[int] = sign * bindparam("compute", type_=BigInteger)
    memory: ColumnElement[int] = sign * bindparam("memory", type_=BigInteger)
    return {
        GpuRow.compute_held_percent: GpuRow.compute_held_percent + compute,
        GpuRow.memory_held_mib: GpuRow.memory_held_mib + memory,
        GpuRow.compute_free_percent: GpuRow.compute_free_percent - compute,
        GpuRow.memory_free_mib: GpuRow.memory_free_mib - memory,
    }


# A share of 0 needs no room, also where a node has given out more by itself than there is.
_HOLD_ANYWHERE = (
    update(GpuRow)
    .where(
        GpuRow.id == bindparam("gpu"),
        or_(bindparam("compute") == 0, GpuRow.compute_free_percent >= bindparam("compute")),
        or_(bindparam("memory") == 0, GpuRow.memory_free_mib >= bindparam("memory")),
    )
    .values(moved(1))
)
_HOLD = _HOLD_ANYWHERE.where(GpuRow.usable)
_UNHOLD = update(GpuRow).where(GpuRow.id == bindparam("gpu")).values(moved(-1))


class SqlGpus:
    """See the port."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, gpu_id: str) -> Gpu | None:
        """See the port."""
        row = self._connection.execute(_SELECT.where(GpuRow.id == gpu_id)).first()
        return _gpu(row) if row else None

    def page(self, page: Page, node_id: str | None = None) -> list[Gpu]:
        """See the port."""
        found = _SELECT.where(GpuRow.id > page.after).order_by(GpuRow.id).limit(page.limit)
        if node_id is not None:
            found = found.where(GpuRow.node_id == node_id)
        return [_gpu(row) for row in self._connection.execute(found)]

    def of_node(self, node_id: str) -> list[Gpu]:
        """See the port."""
        return [_gpu(row) for row in self._connection.execute(_OF_NODE, {"node": node_id})]

    def put(self, gpu: Gpu) -> None:
        """See the port."""
        values = {
            "position": gpu.position,
            "model": gpu.model,
            "memory_mib": gpu.memory_mib,
            "overhead_mib": gpu.overhead_mib,
            "local_compute_percent": gpu.local_compute_percent,
            "local_memory_mib": gpu.local_memory_mib,
            "pool": gpu.pool.value,
            "pool_wanted": gpu.pool_wanted.value,
            "pool_deadline_s": gpu.pool_deadline_s,
            "healthy": gpu.healthy,
            "present": gpu.present,
            "version": gpu.version,
        }
        done = self._connection.execute(update(GpuRow).where(GpuRow.id == gpu.id).values(**values))
        if done.rowcount == 0:
            self._connection.execute(
                insert(GpuRow).values(
                    id=gpu.id,
                    node_id=gpu.node_id,
                    uuid=gpu.uuid,
                    compute_held_percent=0,
                    memory_held_mib=0,
                    compute_free_percent=FULL_PERCENT,
                    memory_free_mib=gpu.memory_mib,
                    licensed=False,
                    usable=False,
                    **values,
                )
            )
            self._connection.execute(
                insert(UseRow).values(gpu_id=gpu.id, load_percent=0, memory_used_mib=0)
            )

    def remove_node(self, node_id: str) -> None:
        """See the port."""
        self._connection.execute(delete(GpuRow).where(GpuRow.node_id == node_id))

    def desired(self, node_ids: Collection[str]) -> dict[str, list[DesiredPool]]:
        """See the port."""
        found: dict[str, list[DesiredPool]] = {}
        for node_id, uuid, pool, deadline_s in self._connection.execute(
            _DESIRED, {"nodes": list(node_ids)}
        ):
            found.setdefault(node_id, []).append(DesiredPool(uuid, _POOLS[pool], deadline_s))
        return found

    def arrived(self, node_id: str) -> set[str]:
        """See the port."""
        return set(self._connection.execute(_ARRIVED, {"node": node_id}).scalars())

    def arriving(self, node_ids: Collection[str]) -> set[str]:
        """See the port."""
        return set(self._connection.execute(_ARRIVING, {"nodes": list(node_ids)}).scalars())

    def refresh(self, node_id: str) -> None:
        """See the port."""
        self._refresh(GpuRow.node_id == node_id)

    def _refresh(self, which: ColumnElement[bool]) -> None:
        node_ready = (
            select(literal(1))
            .where(
                NodeRow.id == GpuRow.node_id,
                NodeRow.state == NodeState.READY.value,
                not_(NodeRow.cordoned),
            )
            .exists()
        )
        self._connection.execute(
            update(GpuRow)
            .where(which)
            .values(
                usable=and_(
                    node_ready,
                    GpuRow.pool == Pool.POOLED.value,
                    GpuRow.pool_wanted == Pool.POOLED.value,
                    GpuRow.healthy,
                    GpuRow.present,
                    GpuRow.licensed,
                ),
                compute_free_percent=FULL_PERCENT
                - GpuRow.compute_held_percent
                - GpuRow.local_compute_percent,
                memory_free_mib=GpuRow.memory_mib
                - GpuRow.overhead_mib
                - GpuRow.memory_held_mib
                - GpuRow.local_memory_mib,
            )
        )

    def licence(self, gpus: int) -> int:
        """See the port. Identifiers sort by age: the oldest GPUs are licensed first."""
        count = self._connection.execute(
            select(func.count()).select_from(GpuRow).where(GpuRow.present)
        ).scalar_one()
        first = select(GpuRow.id).where(GpuRow.present).order_by(GpuRow.id).limit(gpus)
        should = GpuRow.id.in_(first) if count > gpus else literal(True)
        wrong = [
            row.id
            for row in self._connection.execute(
                select(GpuRow.id).where(GpuRow.present, GpuRow.licensed != should)
            )
        ]
        if wrong:
            chosen = GpuRow.id.in_(wrong)
            self._connection.execute(
                update(GpuRow).where(chosen).values(licensed=not_(GpuRow.licensed))
            )
            self._refresh(chosen)
        return max(0, count - gpus)

    def candidates(self, wanted: Wanted, limit: int) -> list[Candidate]:
        """See the port."""
        rows = self._connection.execute(_candidates(shape_of(wanted), limit), demands(wanted))
        return [Candidate(*row) for row in rows]

    def nodes_with(self, wanted: Wanted, gpus: int, limit: int) -> list[str]:
        """See the port."""
        room = func.sum(GpuRow.compute_free_percent)
        found = (
            select(GpuRow.node_id)
            .join(NodeRow, NodeRow.id == GpuRow.node_id)
            .where(*fitting(shape_of(wanted)))
            .group_by(GpuRow.node_id)
            .having(func.count() >= gpus)
            .order_by(room.desc() if wanted.strategy is Strategy.SPREAD else room, GpuRow.node_id)
            .limit(limit)
        )
        return list(self._connection.execute(found, demands(wanted)).scalars())

    def shortfalls(self, wanted: Wanted, *, by_node: int = 0) -> list[Shortfall]:
        """See the port."""
        inner = (
            select(
                reason(shape_of(wanted)).label("reason"),
                NodeRow.name.label("node"),
                GpuRow.compute_free_percent.label("compute"),
                GpuRow.memory_free_mib.label("memory"),
            )
            .join(NodeRow, NodeRow.id == GpuRow.node_id)
            .subquery()
        )
        groups: list[ColumnElement[Any]] = [inner.c.reason]
        if by_node:
            groups.append(inner.c.node)
        compute, memory = func.max(inner.c.compute), func.max(inner.c.memory)
        name = inner.c.node if by_node else literal("")
        found = (
            select(inner.c.reason, func.count(), compute, memory, name)
            .group_by(*groups)
            .order_by(compute.desc(), *groups)
            .limit(by_node or None)
        )
        return [
            Shortfall(why, count, max(most, 0), max(room, 0), node)
            for why, count, most, room, node in self._connection.execute(found, demands(wanted))
        ]

    def hold(self, gpu_id: str, share: Share, *, usable: bool = True) -> bool:
        """See the port."""
        done = self._connection.execute(_HOLD if usable else _HOLD_ANYWHERE, _values(gpu_id, share))
        return done.rowcount == 1

    def unhold(self, gpu_id: str, share: Share) -> None:
        """See the port."""
        self._connection.execute(_UNHOLD, _values(gpu_id, share))


def _values(gpu_id: str, share: Share) -> dict[str, Any]:
    return {"gpu": gpu_id, "compute": share.compute_percent, "memory": share.memory_mib}


@lru_cache(maxsize=256)
def _candidates(shape: Shape, limit: int) -> Executable:
    return CANDIDATES.where(*fitting(shape)).order_by(*order(shape)).limit(limit)


def _gpu(row: Any) -> Gpu:
    return Gpu(
        id=row.id,
        uuid=row.uuid,
        node_id=row.node_id,
        node_name=row.node_name,
        position=row.position,
        model=row.model,
        memory_mib=row.memory_mib,
        overhead_mib=row.overhead_mib,
        compute_held_percent=row.compute_held_percent,
        memory_held_mib=row.memory_held_mib,
        local_compute_percent=row.local_compute_percent,
        local_memory_mib=row.local_memory_mib,
        pool=Pool(row.pool),
        pool_wanted=Pool(row.pool_wanted),
        pool_deadline_s=row.pool_deadline_s,
        healthy=row.healthy,
        present=row.present,
        licensed=row.licensed,
        usable=row.usable,
        load_percent=row.load_percent or 0,
        memory_used_mib=row.memory_used_mib or 0,
        version=row.version,
    )
