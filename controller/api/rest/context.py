"""What every route works with: the store, who asks, idempotency keys, ETags, pages."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Header, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from gpupool.controller.core.errors import Kind, RefusedError
from gpupool.controller.core.event import AuditEntry
from gpupool.controller.core.licence import Licence
from gpupool.controller.core.ports import Answer, KeptAnswer, Page, Store, Tables
from gpupool.controller.core.single import Single
from gpupool.controller.core.token import Actor, Role

T = TypeVar("T")
Item = TypeVar("Item", bound=BaseModel)

ADMIN = (Role.ADMIN,)
STAFF = (Role.ADMIN, Role.OPERATOR)
PEOPLE = (Role.ADMIN, Role.OPERATOR, Role.TENANT)
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_ETAG = re.compile(r'\s*(?:W/)?"(\d{1,18})"\s*')
_bearer = HTTPBearer(auto_error=False, description="A token: `gpupool token create`.")


@dataclass(frozen=True, slots=True)
class Services:
    """What main wires for the routes."""

    store: Store
    licence: Callable[[], Licence]
    version: str
    stopping: Callable[[], bool]
    followers: int = 64  # of events, at once


def services(request: Request) -> Services:
    """Those of the application."""
    found: Services = request.app.state.services
    return found


class Call:
    """One request: who asks, and how to answer it."""

    def __init__(
        self, request: Request, body: bytes, key: str | None, given: Services | None = None
    ) -> None:
        self.services = given or services(request)
        self.store = self.services.store
        self.actor: Actor = request.state.actor
        self._request = request
        self._body = body
        self._key = key

    def read(self, work: Callable[[Tables], T]) -> T:
        """See the port."""
        return self.store.read(work)

    def change(self, work: Callable[[Tables], Answer]) -> Response:
        """One change; with an Idempotency-Key it is done once, and repeated requests get the same
        answer.
        """
        owner = self.actor.token_id
        key = self._key
        if key is None:
            return respond(self.store.change(work))
        if not _KEY.fullmatch(key):
            raise RefusedError(
                Kind.INVALID, "Idempotency-Key: allowed are 1 to 255 printable characters."
            )
        digest = self._digest()

        def once(tables: Tables) -> Answer:
            kept = tables.journal.answer(owner, key)
            if kept is None:
                answer = work(tables)
                tables.journal.keep_answer(owner, key, KeptAnswer(digest, answer))
                return answer
            if kept.request_digest != digest:
                raise RefusedError(
                    Kind.KEY_REUSED,
                    "This Idempotency-Key was used for another request. Take a new key.",
                )
            headers = {**kept.answer.headers, "Idempotency-Replayed": "true"}
            return dataclasses.replace(kept.answer, headers=headers)

        return respond(self.store.change(once))

    def allocate(self, one: Single[Answer]) -> Response:
        """One vGPU, as quickly as the database can."""
        if self._key is not None:
            return self.change(one.change)
        return respond(self.store.allocate(one))

    def no_key(self) -> None:
        """For answers that must not be kept."""
        if self._key is not None:
            raise RefusedError(
                Kind.INVALID,
                "Idempotency-Key is not possible here: the answer holds a secret, which is not "
                "kept.",
            )

    def audit(
        self,
        tables: Tables,
        action: str,
        subject: str,
        before: object | None,
        after: object | None,
        tenant_id: str | None = None,
    ) -> None:
        """Writes down who changed what, in the transaction that changes it."""
        tables.journal.audit(self.entry(action, subject, before, after, tenant_id))

    def entry(
        self,
        action: str,
        subject: str,
        before: object | None,
        after: object | None,
        tenant_id: str | None = None,
    ) -> AuditEntry:
        """What is written down of a change."""
        return AuditEntry(
            action=action,
            subject=subject,
            token_id=self.actor.token_id,
            role=self.actor.role.value,
            request_id=self.actor.request_id,
            tenant_id=tenant_id,
            before=plain(before),
            after=plain(after),
        )

    def _digest(self) -> str:
        asked = f"{self._request.method} {self._request.url.path}?{self._request.url.query}\n"
        return hashlib.sha256(asked.encode() + self._body).hexdigest()


async def _call(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(description="The same key and request again: the same answer, done once (24 h)."),
    ] = None,
) -> Call:
    return Call(request, await request.body(), idempotency_key)


async def _reading(request: Request) -> Call:
    return Call(request, b"", None)


ChangeCall = Annotated[Call, Depends(_call)]
ReadCall = Annotated[Call, Depends(_reading)]


def allow(*roles: Role) -> Any:
    """A dependency: only these roles. Who asks was found out before (door.py)."""

    async def check(
        request: Request,
        _credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> None:
        if request.state.actor.role not in roles:
            names = " or ".join(role.value for role in roles)
            raise RefusedError(Kind.FORBIDDEN, f"This needs a token of the role {names}.")

    return Depends(check)


class PageOf(BaseModel, Generic[Item]):
    """A stretch of a list. next_cursor null: this is the end."""

    items: list[Item]
    next_cursor: str | None = None


# Not `def`: FastAPI would send each of these to a thread.
async def _page(
    limit: Annotated[int, Query(ge=1, le=1000, description="So many at most.")] = 100,
    cursor: Annotated[
        str, Query(max_length=400, description="next_cursor of the page before.")
    ] = "",
) -> Page:
    return Page(limit, decode_cursor(cursor))


PageQuery = Annotated[Page, Depends(_page)]


def encode_cursor(after: str) -> str:
    """Opaque, so that nobody builds one."""
    return base64.urlsafe_b64encode(after.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> str:
    """Raises RefusedError."""
    try:
        padded = cursor.encode() + b"=" * (-len(cursor) % 4)
        after = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise RefusedError(Kind.INVALID, "cursor: take it from next_cursor.") from None
    if "\0" in after:
        raise RefusedError(Kind.INVALID, "cursor: take it from next_cursor.")
    return after


def listed(items: list[BaseModel], page: Page, last: str) -> JSONResponse:
    """A page as it goes out; `last` is what the next one begins after."""
    cursor = encode_cursor(last) if len(items) == page.limit else None
    return JSONResponse(
        {"items": [item.model_dump(mode="json") for item in items], "next_cursor": cursor}
    )


def answer(body: BaseModel, status: int = 200, **headers: str) -> Answer:
    """What a change answers; with the version of what it shows as ETag."""
    version = getattr(body, "version", None)
    found = {name.replace("_", "-"): value for name, value in headers.items()}
    if version is not None:
        found["ETag"] = f'"{version}"'
    return Answer(status, body.model_dump(mode="json"), found)


def respond(answer: Answer) -> Response:
    """An answer as it goes out."""
    if answer.body is None:
        return Response(status_code=answer.status, headers=dict(answer.headers))
    return JSONResponse(answer.body, answer.status, dict(answer.headers))


def shown(body: BaseModel) -> Response:
    """A read as it goes out."""
    return respond(answer(body))


async def if_match(
    value: Annotated[
        str | None,
        Header(alias="If-Match", description="Only if its ETag is still this one."),
    ] = None,
) -> str | None:
    """The header."""
    return value


IfMatch = Annotated[str | None, Depends(if_match)]


def match(header: str | None, version: int) -> None:
    """Raises RefusedError where If-Match names another version."""
    if header is None or header.strip() == "*":
        return
    versions = []
    for part in header.split(","):
        found = _ETAG.fullmatch(part)
        if found is None:
            raise RefusedError(Kind.INVALID, 'If-Match: allowed is an ETag like "3", or *.')
        versions.append(int(found[1]))
    if version not in versions:
        raise RefusedError(
            Kind.STALE,
            f"It is at version {version} now. Read it again, look whether the change still makes "
            "sense, and repeat it.",
            {"version": version},
        )


def rfc3339(time_ms: int) -> str:
    """A time as the API writes it."""
    moment = datetime.fromtimestamp(time_ms / 1000, tz=timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: object | None) -> Mapping[str, Any] | None:
    """A dataclass as JSON can hold it."""
    if value is None:
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: _plain(each) for key, each in dataclasses.asdict(value).items()}
    raise TypeError(f"{type(value).__name__} is no dataclass")


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value
