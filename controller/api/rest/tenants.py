"""/tenants: who may hold how much."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from gpupool.controller.api.rest.context import (
    ADMIN,
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
from gpupool.controller.api.rest.given import QuotaModel, TenantIn, TenantPatch
from gpupool.controller.api.rest.models import TenantOut
from gpupool.controller.api.rest.problems import described
from gpupool.controller.core.errors import Kind, RefusedError, not_found
from gpupool.controller.core.identity import new_id
from gpupool.controller.core.ports import Answer, Page, Tables
from gpupool.controller.core.tenant import Quota, Tenant, check_name
from gpupool.controller.core.token import Role

router = APIRouter(prefix="/tenants", tags=["tenants"], dependencies=[allow(*PEOPLE)])


def find(call: Call, tables: Tables, tenant_id: str) -> Tenant:
    """A tenant that the caller may see. Raises RefusedError."""
    tenant = tables.tenants.get(tenant_id)
    actor = call.actor
    if tenant is None or (actor.role is Role.TENANT and actor.tenant_id != tenant_id):
        raise not_found("tenant", tenant_id)
    return tenant


@router.post(
    "",
    status_code=201,
    response_model=TenantOut,
    responses=described(Kind.NAME_TAKEN),
    dependencies=[allow(*ADMIN)],
)
def create_tenant(call: ChangeCall, body: TenantIn) -> Response:
    """Makes a tenant."""
    check_name(body.name)

    def work(tables: Tables) -> Answer:
        tenant = Tenant(
            id=new_id("tenant", tables.now_ms),
            name=body.name,
            quota=_quota(body.quota),
            created_ms=tables.now_ms,
        )
        tables.tenants.add(tenant)
        call.audit(tables, "tenant.create", tenant.id, None, tenant, tenant.id)
        return answer(TenantOut.of(tenant), 201, Location=f"/api/v1/tenants/{tenant.id}")

    return call.change(work)


@router.get("", response_model=PageOf[TenantOut], responses=described())
def list_tenants(
    call: ReadCall, page: PageQuery, name: Annotated[str | None, Query(max_length=63)] = None
) -> Response:
    """The tenants that the token may see: a tenant's sees its own."""
    actor = call.actor

    def work(tables: Tables) -> list[Tenant]:
        if name is None and actor.role is not Role.TENANT:
            return tables.tenants.page(page)
        one = tables.tenants.by_name(name) if name else tables.tenants.get(actor.tenant_id or "")
        if one is None or one.id <= page.after:
            return []
        return [one] if actor.role is not Role.TENANT or one.id == actor.tenant_id else []

    found = call.read(work)
    return listed([TenantOut.of(each) for each in found], page, found[-1].id if found else "")


@router.get("/{tenant_id}", response_model=TenantOut, responses=described(Kind.NOT_FOUND))
def get_tenant(call: ReadCall, tenant_id: str) -> Response:
    """One tenant, with its quota and what it holds."""
    return shown(TenantOut.of(call.read(lambda tables: find(call, tables, tenant_id))))


@router.patch(
    "/{tenant_id}",
    response_model=TenantOut,
    responses=described(Kind.NOT_FOUND, Kind.STALE),
    dependencies=[allow(*ADMIN)],
)
def patch_tenant(
    call: ChangeCall, tenant_id: str, body: TenantPatch, if_match: IfMatch
) -> Response:
    """Another quota. One below what is held takes nothing away; it only forbids more."""

    def work(tables: Tables) -> Answer:
        tenant = find(call, tables, tenant_id)
        match(if_match, tenant.version)
        tables.tenants.set_quota(tenant_id, _quota(body.quota))
        changed = find(call, tables, tenant_id)
        call.audit(tables, "tenant.quota", tenant_id, tenant, changed, tenant_id)
        return answer(TenantOut.of(changed))

    return call.change(work)


@router.delete(
    "/{tenant_id}",
    status_code=204,
    response_class=Response,
    responses=described(Kind.NOT_FOUND, Kind.IN_USE, Kind.STALE),
    dependencies=[allow(*ADMIN)],
)
def delete_tenant(call: ChangeCall, tenant_id: str, if_match: IfMatch) -> Response:
    """Deletes a tenant that has no vGPUs, with its tokens."""

    def work(tables: Tables) -> Answer:
        tenant = find(call, tables, tenant_id)
        match(if_match, tenant.version)
        if tables.vgpus.page(Page(1), tenant_id):
            raise RefusedError(
                Kind.IN_USE, f"Tenant {tenant.name!r} has vGPUs. Delete these first."
            )
        tables.tokens.remove_of(tenant_id)
        tables.tenants.remove(tenant_id)
        call.audit(tables, "tenant.delete", tenant_id, tenant, None, tenant_id)
        return Answer(204, None, {})

    return call.change(work)


def _quota(given: QuotaModel) -> Quota:
    return Quota(given.vgpus, given.compute_percent, given.memory_mib)
