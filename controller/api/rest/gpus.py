"""/gpus: cards, their room and their pool."""

from __future__ import annotations

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
from gpupool.controller.api.rest.given import GpuPatch
from gpupool.controller.api.rest.models import GpuOut, OperationOut
from gpupool.controller.api.rest.problems import described
from gpupool.controller.core import fleet
from gpupool.controller.core.errors import Kind, not_found
from gpupool.controller.core.gpu import Gpu
from gpupool.controller.core.operation import OperationState
from gpupool.controller.core.ports import Answer, Tables

router = APIRouter(prefix="/gpus", tags=["gpus"], dependencies=[allow(*STAFF)])


def find(tables: Tables, gpu_id: str) -> Gpu:
    """Raises RefusedError."""
    gpu = tables.gpus.get(gpu_id)
    if gpu is None:
        raise not_found("gpu", gpu_id)
    return gpu


@router.get("", response_model=PageOf[GpuOut], responses=described())
def list_gpus(
    call: ReadCall,
    page: PageQuery,
    node: Annotated[str | None, Query(max_length=63, description="id")] = None,
) -> Response:
    """All GPUs, or those of one node."""
    found = call.read(lambda tables: tables.gpus.page(page, node))
    return listed([GpuOut.of(each) for each in found], page, found[-1].id if found else "")


@router.get("/{gpu_id}", response_model=GpuOut, responses=described(Kind.NOT_FOUND))
def get_gpu(call: ReadCall, gpu_id: str) -> Response:
    """One GPU."""
    return shown(GpuOut.of(call.read(lambda tables: find(tables, gpu_id))))


@router.patch(
    "/{gpu_id}",
    status_code=202,
    response_model=OperationOut,
    responses=described(Kind.NOT_FOUND, Kind.STALE),
)
def switch_gpu(call: ChangeCall, gpu_id: str, body: GpuPatch, if_match: IfMatch) -> Response:
    """Sends it to the other pool. The operation ends when its node has done so."""

    def work(tables: Tables) -> Answer:
        gpu = find(tables, gpu_id)
        match(if_match, gpu.version)
        operation = fleet.switch_pool(tables, gpu, body.pool, body.deadline_s)
        call.audit(tables, "gpu.pool", gpu.id, gpu, tables.gpus.get(gpu_id))
        status = 200 if operation.state is OperationState.DONE else 202
        location = f"/api/v1/operations/{operation.id}"
        return answer(OperationOut.of(operation), status, Location=location)

    return call.change(work)
