"""A client of a node wants an on-demand vGPU: which one, and the answer. One transaction."""

from __future__ import annotations

from typing import Any

from gpupool.controller.api.grpc import messages
from gpupool.controller.core import claims
from gpupool.controller.core.errors import Kind, RefusedError, not_found
from gpupool.controller.core.licence import Licence
from gpupool.controller.core.ports import Page, Tables
from gpupool.controller.core.tenant import Tenant
from gpupool.controller.core.vgpu import Mode, State, Vgpu

_TENANTS = 1000  # a page


def claim(tables: Tables, request: Any, licence: Licence, replies: messages.Replies) -> Any:
    """A ClaimReply. Raises RefusedError where asking again may help, or the text says it all."""
    node_id, incarnation = messages.node_of(request)
    node = tables.nodes.get(node_id)
    if node is None or node.incarnation != incarnation:
        return replies.unknown()
    asked = messages.claim(request, "")
    vgpu = _find(tables, asked.vgpu, messages.tenant(request))
    if vgpu.state is State.DELETING:
        return replies.not_granted(f"vGPU {vgpu.name} is being deleted", wait=False)
    elsewhere = vgpu.node_id is not None and vgpu.node_id != node_id
    if elsewhere and vgpu.mode is Mode.RESERVED:
        return replies.not_granted(
            f"vGPU {vgpu.name} is on node {vgpu.node_name}: connect there", wait=False
        )
    granted = claims.claim(tables, messages.claim(request, vgpu.tenant_id), licence)
    generation = tables.nodes.generations([node_id])[node_id]
    tenant = tables.tenants.get(vgpu.tenant_id)
    return replies.granted(replies.vgpu(granted, tenant.name if tenant else ""), generation)


def _find(tables: Tables, name: str, tenant: str) -> Vgpu:
    """By id, or by name: of that tenant, or of the only one that has it."""
    vgpu = tables.vgpus.get(name)
    if vgpu is not None:
        owner = tables.tenants.get(vgpu.tenant_id)
        if tenant in ("", vgpu.tenant_id, owner.name if owner else ""):
            return vgpu
        raise not_found("vgpu", name)
    if tenant:
        owner = tables.tenants.get(tenant) or tables.tenants.by_name(tenant)
        vgpu = tables.vgpus.by_name(owner.id, name) if owner else None
        if vgpu is None:
            raise not_found("vgpu", name)
        return vgpu
    found = [
        one
        for owner in _all_tenants(tables)
        if (one := tables.vgpus.by_name(owner.id, name)) is not None
    ]
    if len(found) > 1:
        raise RefusedError(
            Kind.INVALID,
            f"{len(found)} tenants have a vGPU {name}; say its id, or give the endpoint a tenant.",
        )
    if not found:
        raise not_found("vgpu", name)
    return found[0]


def _all_tenants(tables: Tables) -> list[Tenant]:
    tenants: list[Tenant] = []
    while True:
        page = tables.tenants.page(Page(_TENANTS, tenants[-1].id if tenants else ""))
        tenants += page
        if len(page) < _TENANTS:
            return tenants
