"""/events: what happened, as pages or as a stream; /audit: who changed what."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated

from anyio import sleep, to_thread
from fastapi import APIRouter, Header, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from gpupool.controller.api.rest.context import (
    ADMIN,
    PEOPLE,
    Call,
    PageOf,
    PageQuery,
    ReadCall,
    allow,
    listed,
)
from gpupool.controller.api.rest.models import AuditOut, EventOut
from gpupool.controller.api.rest.problems import described
from gpupool.controller.core.errors import Kind, RefusedError, StoreError
from gpupool.controller.core.event import Event
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.token import Role

router = APIRouter(tags=["events"])
_BATCH = 500
_POLL_S = 0.5
_QUIET_S = 15.0  # between signs of life, and looks whether the token is still good
_MOST_NUMBER = 2**62


def _tenant(call: Call) -> str | None:
    return call.actor.tenant_id if call.actor.role is Role.TENANT else None


@router.get(
    "/events",
    response_model=PageOf[EventOut],
    responses={
        **described(),
        200: {
            "description": "A page; with follow=true a stream that goes on until the client leaves",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
    },
    dependencies=[allow(*PEOPLE)],
)
async def list_events(
    request: Request,
    call: ReadCall,
    page: PageQuery,
    follow: Annotated[bool, Query(description="server-sent events")] = False,
    after: Annotated[
        int | None, Query(ge=0, le=_MOST_NUMBER, description="begin after this number")
    ] = None,
    last_event_id: Annotated[
        str | None, Header(description="the last number that was seen; goes before `after`")
    ] = None,
) -> Response:
    """What happened, oldest first.

    With follow=true: what comes from now on, or all after `after` or Last-Event-ID. An event of the
    type `reset` says that some are no longer kept: read again what you watch.
    """
    tenant_id = _tenant(call)
    if not follow:
        start = _number(page.after) if page.after else after or 0
        found = await to_thread.run_sync(
            lambda: call.read(lambda tables: tables.journal.events(start, page.limit, tenant_id))
        )
        last = str(found[-1].number) if found else ""
        return listed([EventOut.of(each) for each in found], page, last)
    wanted = _number(last_event_id) if last_event_id else after
    state = request.app.state
    if state.followers >= call.services.followers:
        raise RefusedError(
            Kind.TOO_MANY,
            f"{state.followers} streams of events are open at this replica: that is all it has.",
            {"retry_after_s": 5},
        )
    oldest, newest = await to_thread.run_sync(
        lambda: call.read(lambda tables: tables.journal.span())
    )
    start = newest if wanted is None else wanted
    reset = wanted is not None and (wanted > newest or wanted + 1 < oldest)
    stream = _stream(request, call, newest if reset else start, reset=reset)
    return StreamingResponse(
        stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


async def _stream(request: Request, call: Call, after: int, *, reset: bool) -> AsyncIterator[bytes]:
    state, metrics = request.app.state, request.app.state.metrics
    tenant_id = _tenant(call)
    state.followers += 1
    metrics.followers.inc()
    quiet_s = 0.0
    try:
        yield b"retry: 2000\n\n"
        if reset:
            yield f"id: {after}\nevent: reset\ndata: {{}}\n\n".encode()
        while not call.services.stopping():
            start = after
            found = await to_thread.run_sync(
                lambda: call.read(
                    lambda tables: tables.journal.events(start, _BATCH, tenant_id)  # noqa: B023
                )
            )
            if found:
                after = found[-1].number
                yield b"".join(_sse(event) for event in found)
                quiet_s = 0.0
            if len(found) == _BATCH:
                continue
            await sleep(_POLL_S)
            quiet_s += _POLL_S
            if quiet_s >= _QUIET_S:
                quiet_s = 0.0
                yield b": alive\n\n"
                if not await to_thread.run_sync(_still_good, call):
                    return
    except StoreError:
        return  # the client comes again with Last-Event-ID
    finally:
        state.followers -= 1
        metrics.followers.dec()


def _still_good(call: Call) -> bool:
    def work(tables: Tables) -> bool:
        token = tables.tokens.get(call.actor.token_id)
        return token is not None and (token.expires_ms is None or token.expires_ms > tables.now_ms)

    return call.read(work)


def _sse(event: Event) -> bytes:
    data = json.dumps(EventOut.of(event).model_dump(mode="json"), separators=(",", ":"))
    return f"id: {event.number}\nevent: {event.kind}\ndata: {data}\n\n".encode()


def _number(text: str) -> int:
    """Raises RefusedError."""
    if not (text.isascii() and text.isdigit()) or int(text[:20]) > _MOST_NUMBER:
        raise RefusedError(Kind.INVALID, "The place to begin after is an event's number.")
    return int(text)


@router.get(
    "/audit",
    response_model=PageOf[AuditOut],
    responses=described(),
    dependencies=[allow(*ADMIN)],
)
def list_audit(call: ReadCall, page: PageQuery) -> JSONResponse:
    """Who changed what, oldest first."""
    start = _number(page.after) if page.after else 0
    found = call.read(lambda tables: tables.journal.audit_page(start, page.limit))
    last = str(found[-1].number) if found else ""
    return listed([AuditOut.of(each) for each in found], page, last)
