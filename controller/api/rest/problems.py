"""Refusals as RFC 9457 problem documents.

`type` is `urn:gpupool:problem:KIND` and never changes; docs/controller.md lists them. Nothing of
the inside is shown: no traces, no statements, no values of a request that was not understood.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from gpupool.controller.core.errors import Kind, RefusedError, StoreError

log = logging.getLogger("gpupool.controller.api")

MEDIA_TYPE = "application/problem+json"
STATUS: Mapping[Kind, int] = {
    Kind.NOT_FOUND: 404,
    Kind.NAME_TAKEN: 409,
    Kind.INVALID: 422,
    Kind.NO_ROOM: 409,
    Kind.QUOTA: 403,
    Kind.LICENCE: 403,
    Kind.STALE: 412,
    Kind.KEY_REUSED: 422,
    Kind.UNAUTHENTICATED: 401,
    Kind.FORBIDDEN: 403,
    Kind.IN_USE: 409,
    Kind.TOO_MANY: 429,
    Kind.TOO_LARGE: 413,
    Kind.UNAVAILABLE: 503,
    Kind.NOT_ALLOWED: 405,
    Kind.INTERNAL: 500,
}
_TITLES: Mapping[Kind, str] = {
    Kind.NOT_FOUND: "There is no such thing",
    Kind.NAME_TAKEN: "The name is taken",
    Kind.INVALID: "The request is not understood",
    Kind.NO_ROOM: "Nothing has room for it",
    Kind.QUOTA: "The tenant's quota does not allow it",
    Kind.LICENCE: "The licence does not allow it",
    Kind.STALE: "It has been changed since it was read",
    Kind.KEY_REUSED: "The idempotency key belongs to another request",
    Kind.UNAUTHENTICATED: "A valid token is needed",
    Kind.FORBIDDEN: "This token may not do that",
    Kind.IN_USE: "It is in use",
    Kind.TOO_MANY: "Too many requests",
    Kind.TOO_LARGE: "The request is too large",
    Kind.UNAVAILABLE: "The database does not answer",
    Kind.NOT_ALLOWED: "This cannot be done to it",
    Kind.INTERNAL: "The controller failed",
}


class Problem(BaseModel):
    """A problem document; members beyond these depend on its type."""

    model_config = ConfigDict(extra="allow")
    type: str = Field(examples=["urn:gpupool:problem:no-room"])
    title: str
    status: int
    detail: str
    request_id: str


def document(
    kind: Kind, detail: str, request_id: str, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The problem as JSON."""
    return {
        **(facts or {}),
        "type": f"urn:gpupool:problem:{kind.value}",
        "title": _TITLES[kind],
        "status": STATUS[kind],
        "detail": detail,
        "request_id": request_id,
    }


def answer(error: RefusedError, request_id: str) -> JSONResponse:
    """A refusal as it goes out."""
    headers = {}
    if error.kind is Kind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = 'Bearer realm="gpupool"'
    if error.kind in (Kind.TOO_MANY, Kind.UNAVAILABLE):
        headers["Retry-After"] = str(error.facts.get("retry_after_s", 1))
    return JSONResponse(
        document(error.kind, error.detail, request_id, error.facts),
        STATUS[error.kind],
        headers,
        MEDIA_TYPE,
    )


def of_store(error: StoreError) -> RefusedError:
    """The database is away. Its own words stay in the log."""
    told = "Nothing was changed."
    if error.unsure:
        told = (
            "Whether the change took effect is not known: look, or repeat the request with the "
            "same Idempotency-Key."
        )
    return RefusedError(Kind.UNAVAILABLE, f"The database does not answer. {told} Try again soon.")


def broken(error: Exception, request_id: str) -> JSONResponse:
    """A fault of ours. It is in the log."""
    log.error("request %s failed", request_id, exc_info=error)
    detail = "It is a fault of the controller; its log has more under this request id."
    return answer(RefusedError(Kind.INTERNAL, detail), request_id)


def of_validation(error: RequestValidationError) -> RefusedError:
    """What in the request is wrong, without repeating what it said."""
    wrong = [
        {"where": ".".join(str(part) for part in each["loc"]), "problem": str(each["msg"])}
        for each in error.errors()[:20]
    ]
    text = "; ".join(f"{each['where']}: {each['problem']}" for each in wrong[:5])
    return RefusedError(Kind.INVALID, f"The request is wrong: {text}.", {"errors": wrong})


def of_status(status: int) -> RefusedError:
    """What the framework refuses by itself."""
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return RefusedError(Kind.NOT_ALLOWED, "This path does not know this method.")
    if status == HTTPStatus.NOT_FOUND:
        return RefusedError(Kind.NOT_FOUND, "There is nothing at this path.")
    return RefusedError(Kind.INVALID, "The request is not understood.")


def described(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: the problems that a route may answer, beside those that every route may."""
    usual = (
        Kind.UNAUTHENTICATED,
        Kind.FORBIDDEN,
        Kind.TOO_LARGE,
        Kind.INVALID,
        Kind.TOO_MANY,
        Kind.UNAVAILABLE,
    )
    by_status: dict[int | str, list[str]] = {}
    for kind in (*kinds, *usual):
        by_status.setdefault(STATUS[kind], []).append(kind.value)
    return {
        status: {
            "description": "Problem: " + ", ".join(names),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, names in sorted(by_status.items(), key=lambda each: str(each[0]))
    }
