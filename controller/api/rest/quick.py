"""POST /vgpus, which is asked for most often, without the framework's way through its layers, which
costs as much processor time as all the rest of an allocation.

Everything that is not quite plain goes that way nevertheless, with its body read back: roles that
may not, a body that is not understood, whatever else. So all refusals are worded in one place, and
the route in vgpus.py is the description of what happens here.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from anyio import to_thread
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpupool.controller.api.rest import problems
from gpupool.controller.api.rest.context import PEOPLE, Call, Services
from gpupool.controller.api.rest.given import VgpuIn
from gpupool.controller.api.rest.vgpus import create_vgpu
from gpupool.controller.core.errors import RefusedError, StoreError

log = logging.getLogger("gpupool.controller.api")

PATH = "/api/v1/vgpus"


@dataclass(frozen=True, slots=True)
class _Route:
    """What the metrics call it: as the framework's route."""

    name: str = "create_vgpu"


class Quick:
    """Between the door and the application."""

    def __init__(self, inner: ASGIApp, services: Services) -> None:
        self._inner = inner
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self._inner(scope, receive, send)
            return
        body = await _read(receive)
        given = _given(scope, body)
        if given is None:
            await self._inner(scope, _again(body, receive), send)
            return
        scope["route"] = _Route()
        key = Headers(scope=scope).get("idempotency-key")
        call = Call(Request(scope), body, key, self._services)
        request_id = scope["state"]["request_id"]
        try:
            response = await to_thread.run_sync(create_vgpu, call, given)
        except StoreError as error:
            log.warning("request %s: the database: %s", request_id, error)
            response = problems.answer(problems.of_store(error), request_id)
        except RefusedError as error:
            response = problems.answer(error, request_id)
        except Exception as error:
            response = problems.broken(error, request_id)
        await response(scope, receive, send)


def _given(scope: Scope, body: bytes) -> VgpuIn | None:
    """The body, where it is beyond doubt."""
    if scope["state"]["actor"].role not in PEOPLE:
        return None
    if Headers(scope=scope).get("content-type") != "application/json":
        return None
    try:
        return VgpuIn.model_validate(json.loads(body))
    except (ValueError, ValidationError, RecursionError):
        return None


async def _read(receive: Receive) -> bytes:
    """All of it: the door has bounded it. Raises RefusedError where it is too large."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)  # the client has gone
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """`receive` as if nothing had been read."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
