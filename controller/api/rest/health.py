"""/healthz: the process lives. /readyz: it can answer. /metrics: for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from gpupool.controller.api.rest.context import services
from gpupool.controller.core.errors import Kind, RefusedError
from gpupool.controller.core.token import Role

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
async def health() -> Response:
    """Says yes as long as the process serves."""
    return PlainTextResponse("ok\n")


@router.get("/readyz")
def ready(request: Request) -> Response:
    """Says yes when the database answers and the process is not leaving."""
    if services(request).stopping():
        return JSONResponse({"ready": False, "reason": "stopping"}, 503)
    services(request).store.read(lambda tables: tables.tokens.count())
    return JSONResponse({"ready": True})


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Counts."""
    public = request.app.state.public_metrics
    if not public and request.state.actor.role not in (Role.ADMIN, Role.OPERATOR):
        raise RefusedError(Kind.FORBIDDEN, "This needs a token of the role admin or operator.")
    totals = services(request).store.read(lambda tables: tables.totals())
    return Response(request.app.state.metrics.text(totals), media_type="text/plain; version=0.0.4")
