"""/operations: changes that take longer than a request."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gpupool.controller.api.rest.context import (
    PEOPLE,
    PageOf,
    PageQuery,
    ReadCall,
    allow,
    listed,
    shown,
)
from gpupool.controller.api.rest.models import OperationOut
from gpupool.controller.api.rest.problems import described
from gpupool.controller.core.errors import Kind, not_found
from gpupool.controller.core.operation import Operation
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.token import Role

router = APIRouter(prefix="/operations", tags=["operations"], dependencies=[allow(*PEOPLE)])


@router.get("", response_model=PageOf[OperationOut], responses=described())
def list_operations(call: ReadCall, page: PageQuery) -> Response:
    """The operations that the token may see."""
    tenant_id = call.actor.tenant_id if call.actor.role is Role.TENANT else None
    found = call.read(lambda tables: tables.operations.page(page, tenant_id))
    return listed([OperationOut.of(each) for each in found], page, found[-1].id if found else "")


@router.get("/{operation_id}", response_model=OperationOut, responses=described(Kind.NOT_FOUND))
def get_operation(call: ReadCall, operation_id: str) -> Response:
    """One operation."""
    actor = call.actor

    def work(tables: Tables) -> Operation:
        found = tables.operations.get(operation_id)
        if found is None or (actor.role is Role.TENANT and found.tenant_id != actor.tenant_id):
            raise not_found("operation", operation_id)
        return found

    return shown(OperationOut.of(call.read(work)))
