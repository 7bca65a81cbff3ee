"""/sessions: clients on the nodes."""

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
)
from gpupool.controller.api.rest.models import SessionOut
from gpupool.controller.api.rest.problems import described
from gpupool.controller.core.token import Role

router = APIRouter(prefix="/sessions", tags=["sessions"], dependencies=[allow(*PEOPLE)])


@router.get("", response_model=PageOf[SessionOut], responses=described())
def list_sessions(call: ReadCall, page: PageQuery) -> Response:
    """The sessions that the token may see, one row for each vGPU that a client uses."""
    tenant_id = call.actor.tenant_id if call.actor.role is Role.TENANT else None
    found = call.read(lambda tables: tables.sessions.page(page, tenant_id))
    last = f"{found[-1].node_id}/{found[-1].vgpu_id}/{found[-1].id}" if found else ""
    return listed([SessionOut.of(each) for each in found], page, last)
