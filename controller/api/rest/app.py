"""The REST application: routers, and what becomes of errors."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gpupool.controller.api.rest import (
    about,
    events,
    gpus,
    health,
    nodes,
    operations,
    problems,
    sessions,
    tenants,
    tokens,
    vgpus,
)
from gpupool.controller.api.rest.context import Services
from gpupool.controller.api.rest.door import request_id
from gpupool.controller.api.rest.metrics import Metrics
from gpupool.controller.api.rest.problems import Problem
from gpupool.controller.core.errors import RefusedError, StoreError

log = logging.getLogger("gpupool.controller.api")

_ROUTERS = (nodes, gpus, vgpus, sessions, operations, events, tenants, tokens, about)
_DESCRIPTION = """\
The gpupool controller. Errors are problem documents (RFC 9457). Lists come in pages (`limit`,
`cursor`). Changes take an `Idempotency-Key`; what has a `version` has it as ETag, for `If-Match`.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What of the configuration the application needs."""

    public_metrics: bool = False


def make_app(services: Services, metrics: Metrics, options: Options | None = None) -> FastAPI:
    """The application, without its door (door.py)."""
    options = options or Options()
    app = FastAPI(
        title="gpupool controller",
        version=services.version,
        description=_DESCRIPTION,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # its page loads scripts from another site
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.services = services
    app.state.metrics = metrics
    app.state.public_metrics = options.public_metrics
    app.state.followers = 0
    v1 = APIRouter(prefix="/api/v1")
    for module in _ROUTERS:
        v1.include_router(module.router)
    app.include_router(v1)
    app.include_router(health.router)
    _handle_errors(app)
    # FastAPI's documented way to change it ("Extending OpenAPI").
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return problems.answer(error, request_id(request))

    @app.exception_handler(StoreError)
    async def away(request: Request, error: StoreError) -> Response:
        log.warning("request %s: the database: %s", request_id(request), error)
        return problems.answer(problems.of_store(error), request_id(request))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return problems.answer(problems.of_validation(error), request_id(request))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        answer = problems.answer(problems.of_status(error.status_code), request_id(request))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return problems.broken(error, request_id(request))


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas = schema["components"]["schemas"]
        schemas["Problem"] = Problem.model_json_schema()
        # FastAPI's own error form, which nothing here answers.
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema
