"""Operations: the port `Operations`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, insert, select, update

from gpupool.controller.core.operation import Operation, OperationState
from gpupool.controller.core.ports import Page
from gpupool.controller.store.models import OperationRow

_SELECT = select(OperationRow.__table__)


class SqlOperations:
    """See the port."""

    def __init__(self, connection: Connection, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms

    def get(self, operation_id: str) -> Operation | None:
        """See the port."""
        row = self._connection.execute(_SELECT.where(OperationRow.id == operation_id)).first()
        return _operation(row) if row else None

    def page(self, page: Page, tenant_id: str | None = None) -> list[Operation]:
        """See the port."""
        found = _SELECT.where(OperationRow.id > page.after).order_by(OperationRow.id)
        if tenant_id is not None:
            found = found.where(OperationRow.tenant_id == tenant_id)
        return [_operation(row) for row in self._connection.execute(found.limit(page.limit))]

    def running(self, subject: str) -> list[Operation]:
        """See the port."""
        return self.running_any([subject])

    def running_any(self, subjects: Collection[str]) -> list[Operation]:
        """See the port."""
        found = _SELECT.where(
            OperationRow.subject.in_(subjects),
            OperationRow.state == OperationState.RUNNING.value,
        )
        return [_operation(row) for row in self._connection.execute(found)]

    def add(self, operation: Operation) -> None:
        """See the port."""
        self._connection.execute(
            insert(OperationRow).values(
                id=operation.id,
                kind=operation.kind,
                subject=operation.subject,
                state=operation.state.value,
                progress_percent=operation.progress_percent,
                message=operation.message,
                tenant_id=operation.tenant_id,
                created_ms=operation.created_ms,
                updated_ms=operation.updated_ms,
            )
        )

    def end(self, operation_id: str, state: OperationState, message: str) -> None:
        """See the port."""
        values: dict[str, Any] = {"state": state.value, "message": message[:512]}
        if state is OperationState.DONE:
            values["progress_percent"] = 100
        self._connection.execute(
            update(OperationRow)
            .where(OperationRow.id == operation_id)
            .values(updated_ms=self._now_ms, **values)
        )


def _operation(row: Any) -> Operation:
    return Operation(
        id=row.id,
        kind=row.kind,
        subject=row.subject,
        state=OperationState(row.state),
        progress_percent=row.progress_percent,
        message=row.message,
        tenant_id=row.tenant_id,
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
    )
