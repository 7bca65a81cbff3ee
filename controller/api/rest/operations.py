"""/operations: changes that take longer than a request."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gpupool.controller.api.rest.context import (
    PEOPLE,
    Call,
    ChangeCall,
    PageOf,
    PageQuery,
    ReadCall,
    allow,
    answer,
    listed,
    shown,
)
from gpupool.controller.api.rest.models import OperationOut
from gpupool.controller.api.rest.problems import described
from gpupool.controller.core import fleet
from gpupool.controller.core.errors import Kind, not_found
from gpupool.controller.core.operation import Operation
from gpupool.controller.core.ports import Answer, Tables
from gpupool.controller.core.token import Role

router = APIRouter(prefix="/operations", tags=["operations"], dependencies=[allow(*PEOPLE)])


@router.get("", response_model=PageOf[OperationOut], responses=described())
def list_operations(call: ReadCall, page: PageQuery) -> Response:
    """The operations that the token may see."""
    tenant_id = call.actor.tenant_id if call.actor.role is Role.TENANT else None
    found = call.read(lambda tables: tables.operations.page(page, tenant_id))
    return listed([OperationOut.of(each) for each in found], page, found[-1].id if found else "")


def _find(call: Call, tables: Tables, operation_id: str) -> Operation:
    """An operation that the caller may see."""
    actor = call.actor
    found = tables.operations.get(operation_id)
    if found is None or (actor.role is Role.TENANT and found.tenant_id != actor.tenant_id):
        raise not_found("operation", operation_id)
    return found


@router.get("/{operation_id}", response_model=OperationOut, responses=described(Kind.NOT_FOUND))
def get_operation(call: ReadCall, operation_id: str) -> Response:
    """One operation."""
    return shown(OperationOut.of(call.read(lambda tables: _find(call, tables, operation_id))))


@router.delete(
    "/{operation_id}",
    response_model=OperationOut,
    responses=described(Kind.NOT_FOUND, Kind.IN_USE),
)
def cancel_operation(call: ChangeCall, operation_id: str) -> Response:
    """Cancels it: a GPU on its way to the other pool goes back, a node that drains takes clients
    again. A deletion and the end of a session cannot be cancelled.
    """

    def work(tables: Tables) -> Answer:
        found = _find(call, tables, operation_id)
        cancelled = fleet.cancel(tables, found)
        call.audit(tables, "operation.cancel", found.id, found, cancelled, found.tenant_id)
        return answer(OperationOut.of(cancelled))

    return call.change(work)
