"""/nodes: what has registered."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from gpupool.controller.api.rest.context import (
    STAFF,
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
from gpupool.controller.api.rest.given import DrainIn, NodePatch
from gpupool.controller.api.rest.models import NodeOut, OperationOut
from gpupool.controller.api.rest.problems import described
from gpupool.controller.core import drain, fleet
from gpupool.controller.core.errors import Kind, RefusedError, not_found
from gpupool.controller.core.node import Drain, Node, NodeState
from gpupool.controller.core.ports import Answer, Tables

router = APIRouter(prefix="/nodes", tags=["nodes"], dependencies=[allow(*STAFF)])


def find(tables: Tables, node_id: str) -> Node:
    """Raises RefusedError."""
    node = tables.nodes.get(node_id)
    if node is None:
        raise not_found("node", node_id)
    return node


@router.get("", response_model=PageOf[NodeOut], responses=described())
def list_nodes(
    call: ReadCall,
    page: PageQuery,
    name: Annotated[str | None, Query(max_length=63)] = None,
    state: NodeState | None = None,
) -> Response:
    """All nodes."""

    def work(tables: Tables) -> list[Node]:
        if name is None:
            return tables.nodes.page(page, state)
        node = tables.nodes.by_name(name)
        return [] if node is None or node.id <= page.after else [node]

    found = call.read(work)
    return listed([NodeOut.of(each) for each in found], page, found[-1].id if found else "")


@router.get("/{node_id}", response_model=NodeOut, responses=described(Kind.NOT_FOUND))
def get_node(call: ReadCall, node_id: str) -> Response:
    """One node."""
    return shown(NodeOut.of(call.read(lambda tables: find(tables, node_id))))


@router.patch(
    "/{node_id}",
    response_model=NodeOut,
    responses=described(Kind.NOT_FOUND, Kind.IN_USE, Kind.STALE),
)
def patch_node(call: ChangeCall, node_id: str, body: NodePatch, if_match: IfMatch) -> Response:
    """Takes it out of the placement of new vGPUs, or back in."""

    def work(tables: Tables) -> Answer:
        node = find(tables, node_id)
        match(if_match, node.version)
        if node.drain is not Drain.NONE and not body.cordoned:
            raise RefusedError(
                Kind.IN_USE, f"Node {node.name!r} is {node.drain.value}. End its drain instead."
            )
        changed = replace(node, cordoned=body.cordoned, version=node.version + 1)
        tables.nodes.put(changed)
        tables.gpus.refresh(node.id)
        call.audit(tables, "node.patch", node.id, node, changed)
        return answer(NodeOut.of(changed))

    return call.change(work)


@router.put(
    "/{node_id}/drain",
    status_code=202,
    response_model=OperationOut,
    responses=described(Kind.NOT_FOUND, Kind.IN_USE, Kind.STALE),
)
def drain_node(call: ChangeCall, node_id: str, body: DrainIn, if_match: IfMatch) -> Response:
    """Empties it: no new clients and vGPUs, and those that run are waited for. Said again, it has
    another deadline. The operation ends when its node has no session any more.
    """

    def work(tables: Tables) -> Answer:
        node = find(tables, node_id)
        match(if_match, node.version)
        operation = drain.begin(tables, node, body.deadline_s)
        call.audit(tables, "node.drain", node.id, node, tables.nodes.get(node_id))
        location = f"/api/v1/operations/{operation.id}"
        return answer(OperationOut.of(operation), 202, Location=location)

    return call.change(work)


@router.delete(
    "/{node_id}/drain",
    response_model=NodeOut,
    responses=described(Kind.NOT_FOUND, Kind.STALE),
)
def undrain_node(call: ChangeCall, node_id: str, if_match: IfMatch) -> Response:
    """Lets clients and vGPUs come again."""

    def work(tables: Tables) -> Answer:
        node = find(tables, node_id)
        match(if_match, node.version)
        changed = drain.stop(tables, node)
        if changed != node:
            call.audit(tables, "node.undrain", node.id, node, changed)
        return answer(NodeOut.of(changed))

    return call.change(work)


@router.delete(
    "/{node_id}",
    status_code=204,
    response_class=Response,
    responses=described(Kind.NOT_FOUND, Kind.IN_USE, Kind.STALE),
)
def delete_node(call: ChangeCall, node_id: str, if_match: IfMatch) -> Response:
    """Forgets a lost node and every vGPU on it. Its programs must not run any more."""

    def work(tables: Tables) -> Answer:
        node = find(tables, node_id)
        match(if_match, node.version)
        fleet.remove(tables, node)
        call.audit(tables, "node.delete", node.id, node, None)
        return Answer(204, None, {})

    return call.change(work)
