"""/sessions: clients on the nodes."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gpupool.controller.api.rest.context import (
    PEOPLE,
    ChangeCall,
    PageOf,
    PageQuery,
    ReadCall,
    allow,
    answer,
    listed,
)
from gpupool.controller.api.rest.models import OperationOut, SessionOut
from gpupool.controller.api.rest.problems import described
from gpupool.controller.core import session
from gpupool.controller.core.errors import Kind
from gpupool.controller.core.ports import Answer, Tables
from gpupool.controller.core.token import Role

router = APIRouter(prefix="/sessions", tags=["sessions"], dependencies=[allow(*PEOPLE)])


@router.get("", response_model=PageOf[SessionOut], responses=described())
def list_sessions(call: ReadCall, page: PageQuery) -> Response:
    """The sessions that the token may see, one row for each vGPU that a client uses."""
    tenant_id = call.actor.tenant_id if call.actor.role is Role.TENANT else None
    found = call.read(lambda tables: tables.sessions.page(page, tenant_id))
    last = f"{found[-1].node_id}/{found[-1].vgpu_id}/{found[-1].id}" if found else ""
    return listed([SessionOut.of(each) for each in found], page, last)


@router.delete(
    "/{session_id}",
    status_code=202,
    response_model=OperationOut,
    responses=described(Kind.NOT_FOUND, Kind.IN_USE),
)
def end_session(call: ChangeCall, session_id: str) -> Response:
    """Ends a client's use of its vGPUs; its program gets CUDA_ERROR_DEVICE_UNAVAILABLE from then
    on. The operation is done when its node says so.
    """
    tenant_id = call.actor.tenant_id if call.actor.role is Role.TENANT else None

    def work(tables: Tables) -> Answer:
        rows = session.find(tables, session_id, tenant_id)
        operation = session.end(tables, rows)
        if operation.created_ms == tables.now_ms:
            after = tables.sessions.named(rows[0].node_id, rows[0].id)[0]
            name = session.name_of(after)
            call.audit(tables, "session.end", name, rows[0], after, rows[0].tenant_id)
        location = f"/api/v1/operations/{operation.id}"
        return answer(OperationOut.of(operation), 202, Location=location)

    return call.change(work)
