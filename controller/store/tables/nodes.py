"""Nodes: the port `Nodes`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, not_, select, update

from gpupool.controller.core.node import Changes, Drain, Node, NodeState
from gpupool.controller.core.ports import Page, Standing
from gpupool.controller.store.models import BeatRow, LabelRow, NodeRow, SessionRow

_SELECT = select(NodeRow.__table__, BeatRow.heard_ms, BeatRow.sequence).outerjoin(
    BeatRow, BeatRow.node_id == NodeRow.id
)
# Those that reports need are made once: making one costs more than running it.
_GET = _SELECT.where(NodeRow.id == bindparam("node"))
_SOME = _SELECT.where(NodeRow.id.in_(bindparam("nodes", expanding=True)))
_OPEN_CLAIMS = (
    select(SessionRow.node_id)
    .where(SessionRow.node_id.in_(bindparam("nodes", expanding=True)), not_(SessionRow.confirmed))
    .distinct()
)
_APPLIED = (
    update(NodeRow)
    .where(NodeRow.id == bindparam("node"))
    .values(applied_generation=bindparam("applied"))
)
_GENERATIONS = select(NodeRow.id, NodeRow.generation)
_GENERATION = _GENERATIONS.where(NodeRow.id == bindparam("node"))
_SOME_GENERATIONS = _GENERATIONS.where(NodeRow.id.in_(bindparam("nodes", expanding=True)))
_STANDINGS = select(NodeRow.id, NodeRow.incarnation, NodeRow.generation, NodeRow.drain).where(
    NodeRow.id.in_(bindparam("nodes", expanding=True))
)
_DRAINING = _SELECT.where(NodeRow.drain == Drain.DRAINING.value)
_MANY = 100  # a list of more names than that costs more than all rows
_NEXT_REPORT = (
    update(BeatRow)
    .where(
        BeatRow.node_id == bindparam("node"),
        BeatRow.incarnation == bindparam("its_incarnation"),
        BeatRow.sequence < bindparam("its_sequence"),
    )
    .values(sequence=bindparam("its_sequence"), beat=BeatRow.beat + 1, heard_ms=bindparam("now_ms"))
)
_BUMP = (
    update(NodeRow)
    .where(NodeRow.id == bindparam("node"))
    .values(generation=NodeRow.generation + 1)
    .returning(NodeRow.generation)
)


class SqlNodes:
    """See the port."""

    def __init__(self, connection: Connection, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms

    def get(self, node_id: str) -> Node | None:
        """See the port."""
        row = self._connection.execute(_GET, {"node": node_id}).first()
        return _node(row) if row else None

    def some(self, node_ids: Collection[str]) -> dict[str, Node]:
        """See the port."""
        rows = self._connection.execute(_SOME, {"nodes": list(node_ids)})
        return {row.id: _node(row) for row in rows}

    def by_name(self, name: str) -> Node | None:
        """See the port."""
        row = self._connection.execute(_SELECT.where(NodeRow.name == name)).first()
        return _node(row) if row else None

    def page(self, page: Page, state: NodeState | None = None) -> list[Node]:
        """See the port."""
        found = _SELECT.where(NodeRow.id > page.after).order_by(NodeRow.id).limit(page.limit)
        if state is not None:
            found = found.where(NodeRow.state == state.value)
        return [_node(row) for row in self._connection.execute(found)]

    def put(self, node: Node) -> None:
        """See the port."""
        values = {
            "name": node.name,
            "state": node.state.value,
            "cordoned": node.cordoned,
            "labels": dict(node.labels),
            "endpoint": node.endpoint,
            "agent_version": node.agent_version,
            "incarnation": node.incarnation,
            "applied_generation": node.applied_generation,
            "version": node.version,
            "drain": node.drain.value,
            "drain_deadline_s": node.drain_deadline_s,
            "drain_until_ms": node.drain_until_ms,
        }
        done = self._connection.execute(
            update(NodeRow).where(NodeRow.id == node.id).values(**values)
        )
        if done.rowcount == 0:
            self._connection.execute(
                insert(NodeRow).values(
                    id=node.id, generation=node.generation, created_ms=node.created_ms, **values
                )
            )
        self._connection.execute(delete(LabelRow).where(LabelRow.node_id == node.id))
        if node.labels:
            self._connection.execute(
                insert(LabelRow),
                [
                    {"node_id": node.id, "key": key, "value": value}
                    for key, value in node.labels.items()
                ],
            )

    def remove(self, node_id: str) -> None:
        """See the port."""
        self._connection.execute(delete(NodeRow).where(NodeRow.id == node_id))

    def set_state(self, node_id: str, state: NodeState) -> None:
        """See the port."""
        self._connection.execute(
            update(NodeRow)
            .where(NodeRow.id == node_id)
            .values(state=state.value, version=NodeRow.version + 1)
        )

    def bump(self, node_id: str) -> int:
        """See the port."""
        return int(self._connection.execute(_BUMP, {"node": node_id}).scalar_one())

    def applied(self, node_id: str, generation: int) -> None:
        """See the port."""
        self._connection.execute(_APPLIED, {"node": node_id, "applied": generation})

    def generations(self, node_ids: Collection[str]) -> dict[str, int]:
        """See the port."""
        execute = self._connection.execute
        if len(node_ids) == 1:
            rows = execute(_GENERATION, {"node": next(iter(node_ids))})
        elif len(node_ids) < _MANY:
            rows = execute(_SOME_GENERATIONS, {"nodes": list(node_ids)})
        else:
            rows = execute(_GENERATIONS)
        return {node_id: generation for node_id, generation in rows if node_id in node_ids}

    def standings(self, node_ids: Collection[str]) -> dict[str, Standing]:
        """See the port."""
        rows = self._connection.execute(_STANDINGS, {"nodes": list(node_ids)})
        return {
            node_id: Standing(incarnation, generation, drain != Drain.NONE.value)
            for node_id, incarnation, generation, drain in rows
        }

    def draining(self) -> list[Node]:
        """See the port."""
        return [_node(row) for row in self._connection.execute(_DRAINING)]

    def beats(self) -> dict[str, int]:
        """See the port."""
        found = (
            select(BeatRow.node_id, BeatRow.beat)
            .join(NodeRow, NodeRow.id == BeatRow.node_id)
            .where(NodeRow.state == NodeState.READY.value)
        )
        return {row.node_id: row.beat for row in self._connection.execute(found)}

    def start_incarnation(self, node_id: str, incarnation: int) -> None:
        """See the port."""
        values = {"incarnation": incarnation, "sequence": 0, "heard_ms": self._now_ms}
        done = self._connection.execute(
            update(BeatRow)
            .where(BeatRow.node_id == node_id)
            .values(beat=BeatRow.beat + 1, **values)
        )
        if done.rowcount == 0:
            self._connection.execute(insert(BeatRow).values(node_id=node_id, beat=1, **values))
        # Numbers of reports begin anew, so none of the old ones may hold a claim.
        self._connection.execute(
            update(SessionRow).where(SessionRow.node_id == node_id).values(after_sequence=0)
        )

    def took(self, told: Sequence[tuple[Changes, int]]) -> None:
        """See the port."""
        if not told:
            return
        # One order, as signs of life have, which are written beside changes: no deadlock.
        ordered = sorted(told, key=lambda one: one[0].node_id)
        self._connection.execute(
            _NEXT_REPORT,
            [
                {
                    "node": one.node_id,
                    "its_incarnation": one.incarnation,
                    "its_sequence": one.sequence,
                    "now_ms": self._now_ms,
                }
                for one, _ in ordered
            ],
        )
        self._connection.execute(
            _APPLIED, [{"node": one.node_id, "applied": applied} for one, applied in ordered]
        )

    def with_open_claims(self, node_ids: Collection[str]) -> set[str]:
        """See the port."""
        return set(self._connection.execute(_OPEN_CLAIMS, {"nodes": list(node_ids)}).scalars())

    def next_report(self, node_id: str, incarnation: int, sequence: int) -> bool:
        """See the port."""
        values = {
            "node": node_id,
            "its_incarnation": incarnation,
            "its_sequence": sequence,
            "now_ms": self._now_ms,
        }
        done = self._connection.execute(_NEXT_REPORT, values)
        return done.rowcount == 1


def _node(row: Any) -> Node:
    return Node(
        id=row.id,
        name=row.name,
        state=NodeState(row.state),
        cordoned=row.cordoned,
        labels=row.labels,
        endpoint=row.endpoint,
        agent_version=row.agent_version,
        incarnation=row.incarnation,
        generation=row.generation,
        applied_generation=row.applied_generation,
        version=row.version,
        created_ms=row.created_ms,
        heard_ms=row.heard_ms or 0,
        sequence=row.sequence or 0,
        drain=Drain(row.drain),
        drain_deadline_s=row.drain_deadline_s,
        drain_until_ms=row.drain_until_ms,
    )
