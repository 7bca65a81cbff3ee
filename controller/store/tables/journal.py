"""Events, the audit log and kept answers: the port `Journal`.

Events and audit entries are written at the end of a transaction, all of them with one statement
each: nothing that a change decides by is in them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from gpupool.controller.core.event import AuditEntry, Event
from gpupool.controller.core.ports import Answer, KeptAnswer
from gpupool.controller.store.models import AnswerRow, AuditRow, EventRow

_EVENT = insert(EventRow).inline()
_AUDIT = insert(AuditRow).inline()
_ANSWER = insert(AnswerRow)


class SqlJournal:
    """See the port."""

    def __init__(self, connection: Connection, now_ms: int) -> None:
        self._connection = connection
        self.now_ms = now_ms
        self._events: list[dict[str, Any]] = []
        self._entries: list[dict[str, Any]] = []

    def hand_over(self, other: SqlJournal) -> None:
        """What is not written yet is written by another journal of the same transaction."""
        other._events += self._events
        other._entries += self._entries

    def take(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Events and audit entries that are not written yet: the caller writes them."""
        taken = self._events, self._entries
        self._events, self._entries = [], []
        return taken

    def flush(self) -> None:
        """Writes what has been told."""
        for statement, rows in ((_EVENT, self._events), (_AUDIT, self._entries)):
            if rows:
                self._connection.execute(statement, rows)
                rows.clear()

    def emit(self, event: Event) -> None:
        """See the port."""
        self._events.append(
            {
                "time_ms": self.now_ms,
                "kind": event.kind,
                "subject": event.subject,
                "message": event.message[:512],
                "tenant_id": event.tenant_id,
                "node_id": event.node_id,
                "facts": dict(event.facts),
            }
        )

    def events(self, after: int, limit: int, tenant_id: str | None = None) -> list[Event]:
        """See the port."""
        self.flush()
        found = select(EventRow.__table__).where(EventRow.number > after)
        if tenant_id is not None:
            found = found.where(EventRow.tenant_id == tenant_id)
        rows = self._connection.execute(found.order_by(EventRow.number).limit(limit))
        return [_event(row) for row in rows]

    def span(self) -> tuple[int, int]:
        """See the port."""
        self.flush()
        row = self._connection.execute(
            select(func.min(EventRow.number), func.max(EventRow.number))
        ).one()
        return row[0] or 0, row[1] or 0

    def audit(self, entry: AuditEntry) -> None:
        """See the port."""
        self._entries.append(
            {
                "time_ms": self.now_ms,
                "action": entry.action,
                "subject": entry.subject,
                "token_id": entry.token_id,
                "role": entry.role,
                "request_id": entry.request_id,
                "tenant_id": entry.tenant_id,
                "before": dict(entry.before) if entry.before is not None else None,
                "after": dict(entry.after) if entry.after is not None else None,
            }
        )

    def audit_page(self, after: int, limit: int) -> list[AuditEntry]:
        """See the port."""
        self.flush()
        found = select(AuditRow.__table__).where(AuditRow.number > after)
        rows = self._connection.execute(found.order_by(AuditRow.number).limit(limit))
        return [_entry(row) for row in rows]

    def answer(self, owner: str, key: str) -> KeptAnswer | None:
        """See the port."""
        row = self._connection.execute(
            select(AnswerRow.__table__).where(AnswerRow.owner == owner, AnswerRow.key == key)
        ).first()
        if row is None:
            return None
        return KeptAnswer(row.request_digest, Answer(row.status, row.body, row.headers))

    def keep_answer(self, owner: str, key: str, kept: KeptAnswer) -> None:
        """See the port."""
        self._connection.execute(
            _ANSWER,
            {
                "owner": owner,
                "key": key,
                "request_digest": kept.request_digest,
                "status": kept.answer.status,
                "body": kept.answer.body,
                "headers": dict(kept.answer.headers),
                "created_ms": self.now_ms,
            },
        )

    def forget(self, events_before_ms: int, audit_before_ms: int, answers_before_ms: int) -> int:
        """See the port."""
        statements = (
            delete(EventRow).where(EventRow.time_ms < events_before_ms),
            delete(AuditRow).where(AuditRow.time_ms < audit_before_ms),
            delete(AnswerRow).where(AnswerRow.created_ms < answers_before_ms),
        )
        return sum(self._connection.execute(each).rowcount for each in statements)


def _event(row: Any) -> Event:
    return Event(
        kind=row.kind,
        subject=row.subject,
        message=row.message,
        tenant_id=row.tenant_id,
        node_id=row.node_id,
        facts=row.facts,
        number=row.number,
        time_ms=row.time_ms,
    )


def _entry(row: Any) -> AuditEntry:
    return AuditEntry(
        action=row.action,
        subject=row.subject,
        token_id=row.token_id,
        role=row.role,
        request_id=row.request_id,
        tenant_id=row.tenant_id,
        before=row.before,
        after=row.after,
        number=row.number,
        time_ms=row.time_ms,
    )
