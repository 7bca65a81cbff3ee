"""What every request passes before any route: size, request id, token, rate; then what is counted.

Plain ASGI, so that a token is asked for before a body is looked at, and nothing is read twice.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpupool.controller.api.limiter import Limiter
from gpupool.controller.api.rest import problems
from gpupool.controller.api.rest.metrics import Metrics
from gpupool.controller.core.errors import Kind, RefusedError, StoreError
from gpupool.controller.core.ports import Store, Tables
from gpupool.controller.core.token import Actor, Role, digest

log = logging.getLogger("gpupool.controller.api")

OPEN = frozenset({"/healthz", "/readyz", "/api/v1/openapi.json"})
MOST_BODY_BYTES = 256 << 10
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MOST_TOKEN_CHARACTERS = 200
_TRUSTED_S = 1.0  # so long a token that was found is not looked up again: it bounds a revocation
_MOST_TRUSTED = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """Who may ask how often."""

    requests: Limiter  # by token
    failures: Limiter  # by address: tokens that are not known


class Door:
    """The outermost application."""

    def __init__(
        self,
        inner: ASGIApp,
        store: Store,
        limits: Limits,
        metrics: Metrics,
        *,
        now_ms: Callable[[], int],
        public_metrics: bool = False,
    ) -> None:
        self._inner = inner
        self._store = store
        self._limits = limits
        self._metrics = metrics
        self._now_ms = now_ms
        self._trusted: dict[str, tuple[float, Actor]] = {}
        self._open = OPEN | ({"/metrics"} if public_metrics else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500
        start_s = time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                found = MutableHeaders(scope=message)
                found["X-Request-Id"] = request_id
                found["X-Content-Type-Options"] = "nosniff"
                if "cache-control" not in found:
                    found["Cache-Control"] = "no-store"
            await send(message)

        try:
            await self._admit(scope, headers, request_id)
            await self._inner(scope, _bounded(headers, receive), answer)
        except RefusedError as error:
            await problems.answer(error, request_id)(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "name", "other")
            self._metrics.count(scope["method"], route, status, time.perf_counter() - start_s)

    async def _admit(self, scope: Scope, headers: Headers, request_id: str) -> None:
        """Finds out who asks. Raises RefusedError."""
        if "\0" in scope["path"] or b"%00" in scope.get("query_string", b""):
            # No name has one, and PostgreSQL's texts cannot.
            raise RefusedError(Kind.INVALID, "The address has a zero byte.")
        if scope["path"] in self._open:
            scope["state"]["actor"] = Actor("", Role.TENANT, request_id=request_id)
            return
        address = (scope.get("client") or ("",))[0]
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        actor = None
        if scheme.lower() == "bearer" and 0 < len(secret) <= _MOST_TOKEN_CHARACTERS:
            key = digest(secret.strip())
            # Behind a balancer all clients have one address: whoever was let in before still is.
            if key not in self._trusted and self._limits.failures.empty(address):
                raise too_many(1.0, "Too many requests without a valid token from this address.")
            actor = await self._who(key, request_id)
        if actor is None:
            self._limits.failures.take(address)
            raise RefusedError(
                Kind.UNAUTHENTICATED,
                "Send `Authorization: Bearer TOKEN` with a token that has not expired.",
            )
        wait_s = self._limits.requests.take(actor.token_id)
        if wait_s > 0:
            raise too_many(wait_s, "This token asks more often than it may.")
        scope["state"]["actor"] = actor

    async def _who(self, key: str, request_id: str) -> Actor | None:
        """The owner of a token. Looking it up costs as much as the rest of a small request, so
        for a moment it is remembered, by its digest.
        """
        now_s = time.monotonic()
        until_s, actor = self._trusted.get(key, (0.0, None))
        if actor is None or now_s >= until_s:
            actor = await to_thread.run_sync(who, self._store, key, self._now_ms())
            if len(self._trusted) >= _MOST_TRUSTED:
                self._trusted.clear()
            if actor is not None:
                self._trusted[key] = (now_s + _TRUSTED_S, actor)
            else:
                self._trusted.pop(key, None)
        return replace(actor, request_id=request_id) if actor is not None else None


def who(store: Store, key: str, now_ms: int) -> Actor | None:
    """The owner of the token with this digest. Raises RefusedError where the database is away."""

    def find(tables: Tables) -> Actor | None:
        token = tables.tokens.by_digest(key)
        if token is None or (token.expires_ms is not None and token.expires_ms <= now_ms):
            return None
        return Actor(token.id, token.role, token.tenant_id, token.node_name)

    try:
        return store.read(find)
    except StoreError as error:
        log.warning("the database does not answer: %s", error)
        raise problems.of_store(error) from error


def too_many(wait_s: float, detail: str) -> RefusedError:
    """Come again later."""
    seconds = max(1, round(wait_s + 0.5))
    return RefusedError(Kind.TOO_MANY, detail, {"retry_after_s": seconds})


def _bounded(headers: Headers, receive: Receive) -> Receive:
    """`receive`, which refuses a body that is larger than any request needs."""
    told = headers.get("content-length", "0")
    if not told.isdigit() or int(told) > MOST_BODY_BYTES:
        raise _too_large()
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > MOST_BODY_BYTES:
                raise _too_large()
        return message

    return bounded


def _too_large() -> RefusedError:
    return RefusedError(
        Kind.TOO_LARGE,
        f"The body may have {MOST_BODY_BYTES} bytes, and its length must be a number.",
    )


def request_id(request: Request) -> str:
    """Of a request that passed the door."""
    found: str = request.state.request_id
    return found
