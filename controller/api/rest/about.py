"""/licence and /version."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from gpupool.controller.api.rest.context import (
    PEOPLE,
    STAFF,
    ReadCall,
    allow,
    rfc3339,
    shown,
)
from gpupool.controller.api.rest.models import LicenceOut, VersionOut
from gpupool.controller.api.rest.problems import described
from gpupool.controller.core.ports import Tables

router = APIRouter(tags=["about"])


@router.get(
    "/licence",
    response_model=LicenceOut,
    responses=described(),
    dependencies=[allow(*STAFF)],
)
def get_licence(call: ReadCall) -> Response:
    """What may be given out, and until when. `id` null: no licence is installed."""
    licence = call.services.licence()

    def work(tables: Tables) -> tuple[int, int]:
        return tables.totals().gpus, tables.now_ms

    gpus, now_ms = call.read(work)
    return shown(
        LicenceOut(
            id=licence.id or None,
            holder=licence.holder or None,
            gpus=licence.gpus,
            gpus_known=gpus,
            expires_at=None if licence.expires_ms is None else rfc3339(licence.expires_ms),
            expired=licence.expired(now_ms),
        )
    )


@router.get(
    "/version",
    response_model=VersionOut,
    responses=described(),
    dependencies=[allow(*PEOPLE)],
)
def get_version(call: ReadCall) -> Response:
    """Which controller answers."""
    return JSONResponse({"version": call.services.version, "api": "v1"})
