"""/vgpus: make, look at, resize, delete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from gpupool.controller.api.rest.context import (
    PEOPLE,
    Call,
    ChangeCall,
    IfMatch,
    PageOf,
    PageQuery,
    ReadCall,
    allow,
    answer,
    listed,
    match,
    shown,
)
from gpupool.controller.api.rest.given import GroupRequest, VgpuIn, VgpuPatch
from gpupool.controller.api.rest.models import GroupOut, OperationOut, PlaceOut, PlacesOut, VgpuOut
from gpupool.controller.api.rest.problems import described
from gpupool.controller.core import allocation
from gpupool.controller.core.errors import Kind, RefusedError, not_found
from gpupool.controller.core.operation import OperationState
from gpupool.controller.core.ports import Answer, Journal, Tables
from gpupool.controller.core.scheduler import Wanted
from gpupool.controller.core.single import Single
from gpupool.controller.core.token import Role
from gpupool.controller.core.vgpu import Change, Request, Vgpu

router = APIRouter(prefix="/vgpus", tags=["vgpus"], dependencies=[allow(*PEOPLE)])
_MADE = described(Kind.NAME_TAKEN, Kind.NO_ROOM, Kind.QUOTA, Kind.LICENCE, Kind.NOT_FOUND)


def tenant_of(call: Call, tables: Tables, given: str | None) -> str:
    """Whose vGPU it becomes. Raises RefusedError."""
    actor = call.actor
    if actor.role is Role.TENANT:
        own = tables.tenants.get(actor.tenant_id or "")
        if own is None or given not in (None, own.id, own.name):
            raise not_found("tenant", given or "")
        return own.id
    if given is None:
        raise RefusedError(Kind.INVALID, "tenant is missing: for whom is the vGPU?")
    tenant = tables.tenants.get(given) or tables.tenants.by_name(given)
    if tenant is None:
        raise not_found("tenant", given)
    return tenant.id


def find(call: Call, tables: Tables, vgpu_id: str) -> Vgpu:
    """A vGPU that the caller may see. Another tenant's looks as if there were none."""
    vgpu = tables.vgpus.get(vgpu_id)
    actor = call.actor
    if vgpu is None or (actor.role is Role.TENANT and vgpu.tenant_id != actor.tenant_id):
        raise not_found("vgpu", vgpu_id)
    return vgpu


def _create(
    call: Call,
    request: Callable[[Tables], Request],
    shape: Callable[[list[Vgpu]], Answer],
) -> Response:
    """Creates, or explains. The request is known once its tenant has been looked up."""
    asked: list[Request] = []

    def work(tables: Tables) -> Answer:
        asked[:] = [request(tables)]
        made = allocation.create(tables, asked[0], call.services.licence())
        for vgpu in made:
            call.audit(tables, "vgpu.create", vgpu.id, None, vgpu, vgpu.tenant_id)
        return shape(made)

    try:
        return call.change(work)
    except allocation.NoRoomError:
        operator = call.actor.role is not Role.TENANT
        raise call.read(
            lambda tables: allocation.explain(tables, asked[0], operator=operator)
        ) from None


@router.post("", status_code=201, response_model=VgpuOut, responses=_MADE)
def create_vgpu(call: ChangeCall, body: VgpuIn) -> Response:
    """Makes a vGPU. A reserved one has its GPU at once; an on-demand one gets it with a client."""
    tenant = _plain_tenant(call, body.tenant)
    if tenant is not None:
        return _create_single(call, body, tenant)

    def request(tables: Tables) -> Request:
        return Request(
            tenant_of(call, tables, body.tenant),
            (body.ask(body.mode),),
            body.selector.inside(),
            body.strategy,
        )

    return _create(call, request, lambda made: _made(made[0]))


def _plain_tenant(call: Call, given: str | None) -> str | None:
    """Id or name of whose vGPU it becomes, where that is known without looking anything up."""
    actor = call.actor
    if actor.role is not Role.TENANT:
        return given
    return actor.tenant_id if given in (None, actor.tenant_id) else None


def _create_single(call: Call, body: VgpuIn, tenant: str) -> Response:
    """The change that is made most often."""

    def finish(journal: Journal, vgpu: Vgpu) -> Answer:
        journal.audit(call.entry("vgpu.create", vgpu.id, None, vgpu, vgpu.tenant_id))
        return _made(vgpu)

    ask, selector = body.ask(body.mode), body.selector.inside()
    licence = call.services.licence()
    try:
        return call.allocate(Single(tenant, ask, selector, body.strategy, licence, finish))
    except allocation.NoRoomError:
        operator = call.actor.role is not Role.TENANT
        # Whose it would be makes no difference to why there is no room.
        asked = Request(tenant, (ask,), selector, body.strategy)
        raise call.read(
            lambda tables: allocation.explain(tables, asked, operator=operator)
        ) from None


def _made(vgpu: Vgpu) -> Answer:
    return answer(VgpuOut.of(vgpu), 201, Location=f"/api/v1/vgpus/{vgpu.id}")


@router.post("/group", status_code=201, response_model=GroupOut, responses=_MADE)
def create_group(call: ChangeCall, body: GroupRequest) -> Response:
    """Makes several vGPUs: all of them, or none."""

    def request(tables: Tables) -> Request:
        return Request(
            tenant_of(call, tables, body.tenant),
            tuple(spec.ask(body.mode) for spec in body.vgpus),
            body.selector.inside(),
            body.strategy,
            body.same_node,
            body.distinct_gpus,
        )

    def shape(made: list[Vgpu]) -> Answer:
        items = [VgpuOut.of(vgpu) for vgpu in made]
        return answer(GroupOut(group_id=made[0].group_id, items=items), 201)

    return _create(call, request, shape)


@router.get("", response_model=PageOf[VgpuOut], responses=described(Kind.NOT_FOUND))
def list_vgpus(
    call: ReadCall,
    page: PageQuery,
    name: Annotated[str | None, Query(max_length=63)] = None,
    tenant: Annotated[str | None, Query(max_length=63, description="name or id")] = None,
    node: Annotated[str | None, Query(max_length=63, description="id")] = None,
) -> Response:
    """The vGPUs that the token may see."""
    staff = call.actor.role is not Role.TENANT

    def work(tables: Tables) -> list[Vgpu]:
        owner = None
        if not staff or tenant is not None or name is not None:
            owner = tenant_of(call, tables, tenant)
        if name is not None and owner is not None:
            found = tables.vgpus.by_name(owner, name)
            return [] if found is None or found.id <= page.after else [found]
        return tables.vgpus.page(page, owner, node)

    found = call.read(work)
    return listed([VgpuOut.of(each) for each in found], page, found[-1].id if found else "")


@router.get("/{vgpu_id}", response_model=VgpuOut, responses=described(Kind.NOT_FOUND))
def get_vgpu(call: ReadCall, vgpu_id: str) -> Response:
    """One vGPU."""
    return shown(VgpuOut.of(call.read(lambda tables: find(call, tables, vgpu_id))))


@router.get("/{vgpu_id}/places", response_model=PlacesOut, responses=described(Kind.NOT_FOUND))
def get_places(call: ReadCall, vgpu_id: str) -> Response:
    """Where a client of it should connect: its node, or those with room for an on-demand one."""

    def work(tables: Tables) -> list[tuple[str, str]]:
        vgpu = find(call, tables, vgpu_id)
        if vgpu.node_name is not None:
            return [(vgpu.node_name, vgpu.endpoint or "")]
        wanted = Wanted(vgpu.share, vgpu.selector, vgpu.strategy)
        found = tables.gpus.candidates(wanted, 64)
        return list(dict.fromkeys((each.node_name, each.endpoint) for each in found))[:16]

    places = [PlaceOut(node=node, endpoint=endpoint) for node, endpoint in call.read(work)]
    return shown(PlacesOut(items=places))


@router.patch(
    "/{vgpu_id}",
    response_model=VgpuOut,
    responses=described(
        Kind.NOT_FOUND, Kind.NO_ROOM, Kind.IN_USE, Kind.QUOTA, Kind.LICENCE, Kind.STALE
    ),
)
def resize_vgpu(call: ChangeCall, vgpu_id: str, body: VgpuPatch, if_match: IfMatch) -> Response:
    """Another share, policy or priority, while its programs run."""
    change = Change(body.compute_percent, body.memory_mib, body.policy, body.priority)

    def work(tables: Tables) -> Answer:
        vgpu = find(call, tables, vgpu_id)
        match(if_match, vgpu.version)
        changed = allocation.resize(tables, vgpu, change, call.services.licence())
        call.audit(tables, "vgpu.resize", vgpu.id, vgpu, changed, vgpu.tenant_id)
        return answer(VgpuOut.of(changed))

    return call.change(work)


@router.delete(
    "/{vgpu_id}",
    status_code=202,
    response_model=OperationOut,
    responses=described(Kind.NOT_FOUND, Kind.STALE),
)
def delete_vgpu(call: ChangeCall, vgpu_id: str, if_match: IfMatch) -> Response:
    """Deletes it and ends its programs. 202: its node still has to say so, see the operation."""

    def work(tables: Tables) -> Answer:
        vgpu = find(call, tables, vgpu_id)
        match(if_match, vgpu.version)
        operation = allocation.delete(tables, vgpu)
        call.audit(tables, "vgpu.delete", vgpu.id, vgpu, None, vgpu.tenant_id)
        status = 200 if operation.state is OperationState.DONE else 202
        location = f"/api/v1/operations/{operation.id}"
        return answer(OperationOut.of(operation), status, Location=location)

    return call.change(work)
