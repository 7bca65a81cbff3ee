"""Why the controller says no.

A refusal is an answer, not a failure: it says what was asked, what is in the way and what to do.
Its kind never changes its name: programs branch on it (`urn:gpupool:problem:KIND`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any


class Kind(str, Enum):
    """Kinds of refusals. The names are part of the API."""

    NOT_FOUND = "not-found"
    NAME_TAKEN = "name-taken"
    INVALID = "invalid-request"
    NO_ROOM = "no-room"
    QUOTA = "quota-exceeded"
    LICENCE = "licence"
    STALE = "stale-version"
    KEY_REUSED = "idempotency-key-reused"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    IN_USE = "in-use"
    TOO_MANY = "too-many-requests"
    TOO_LARGE = "request-too-large"
    UNAVAILABLE = "database-unavailable"
    NOT_ALLOWED = "method-not-allowed"
    INTERNAL = "internal-error"


class RefusedError(Exception):
    """The request is refused. `detail` is for people, `facts` for programs."""

    def __init__(self, kind: Kind, detail: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.facts: Mapping[str, Any] = facts or {}


class StoreError(Exception):
    """The database does not answer, or not in time. Nothing was changed, unless `unsure`."""

    def __init__(self, detail: str, *, unsure: bool = False) -> None:
        super().__init__(detail)
        self.unsure = unsure


def not_found(noun: str, name: str) -> RefusedError:
    """There is none, or it is another tenant's: the two must look the same."""
    return RefusedError(Kind.NOT_FOUND, f"There is no {noun} {name!r}.", {noun: name})
