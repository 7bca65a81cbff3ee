"""Sessions: the port `Sessions`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    insert,
    select,
    tuple_,
    update,
)

from gpupool.controller.core.node import Session, SessionEnd
from gpupool.controller.core.ports import Page
from gpupool.controller.store.models import SessionRow

_SELECT = select(SessionRow.__table__)
_KEY = (SessionRow.node_id, SessionRow.id, SessionRow.vgpu_id)
_OF_NODE = _SELECT.where(SessionRow.node_id == bindparam("node")).order_by(*_KEY)
_ENDING = (
    select(SessionRow.node_id, SessionRow.id, SessionRow.started_ms)
    .where(SessionRow.node_id.in_(bindparam("nodes", expanding=True)), SessionRow.ending)
    .distinct()
)
_SEPARATOR = "/"  # in no identifier of ours; a session's own id is the rest


class SqlSessions:
    """See the port."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def of_node(self, node_id: str) -> list[Session]:
        """See the port."""
        return [_session(row) for row in self._connection.execute(_OF_NODE, {"node": node_id})]

    def of_vgpu(self, vgpu_id: str) -> list[Session]:
        """See the port."""
        found = _SELECT.where(SessionRow.vgpu_id == vgpu_id).order_by(*_KEY)
        return [_session(row) for row in self._connection.execute(found)]

    def page(self, page: Page, tenant_id: str | None = None) -> list[Session]:
        """See the port. `after` is what `key` made of the last one."""
        found = _SELECT.order_by(*_KEY).limit(page.limit)
        if page.after:
            node_id, vgpu_id, session_id = (*page.after.split(_SEPARATOR, 2), "", "")[:3]
            found = found.where(tuple_(*_KEY) > tuple_(node_id, session_id, vgpu_id))
        if tenant_id is not None:
            found = found.where(SessionRow.tenant_id == tenant_id)
        return [_session(row) for row in self._connection.execute(found)]

    def put(self, session: Session, after_sequence: int = 0) -> None:
        """See the port."""
        values = {
            "node_name": session.node_name,
            "gpu_id": session.gpu_id,
            "tenant_id": session.tenant_id,
            "program": session.program[:255],
            "confirmed": session.confirmed,
        }
        done = self._connection.execute(update(SessionRow).where(_is(session)).values(**values))
        if done.rowcount == 0:
            self._connection.execute(
                insert(SessionRow).values(
                    node_id=session.node_id,
                    id=session.id,
                    vgpu_id=session.vgpu_id,
                    started_ms=session.started_ms,
                    after_sequence=after_sequence,
                    **values,
                )
            )

    def remove(self, session: Session) -> None:
        """See the port."""
        self._connection.execute(delete(SessionRow).where(_is(session)))

    def named(self, node_id: str, session_id: str) -> list[Session]:
        """See the port."""
        found = _SELECT.where(SessionRow.node_id == node_id, SessionRow.id == session_id)
        return [_session(row) for row in self._connection.execute(found.order_by(*_KEY))]

    def set_ending(self, session: Session) -> None:
        """See the port."""
        self._connection.execute(update(SessionRow).where(_is(session)).values(ending=True))

    def ending(self, node_ids: Collection[str]) -> dict[str, list[SessionEnd]]:
        """See the port."""
        found: dict[str, list[SessionEnd]] = {}
        for node_id, session_id, started_ms in self._connection.execute(
            _ENDING, {"nodes": list(node_ids)}
        ):
            found.setdefault(node_id, []).append(SessionEnd(session_id, started_ms))
        return found

    def claimed_after(self, session: Session) -> int:
        """See the port."""
        found = select(SessionRow.after_sequence).where(_is(session))
        return int(self._connection.execute(found).scalar() or 0)


def _is(session: Session) -> ColumnElement[bool]:
    return and_(
        SessionRow.node_id == session.node_id,
        SessionRow.id == session.id,
        SessionRow.vgpu_id == session.vgpu_id,
    )


def _session(row: Any) -> Session:
    return Session(
        id=row.id,
        node_id=row.node_id,
        node_name=row.node_name,
        vgpu_id=row.vgpu_id,
        gpu_id=row.gpu_id,
        tenant_id=row.tenant_id,
        program=row.program,
        started_ms=row.started_ms,
        confirmed=row.confirmed,
        ending=row.ending,
    )
