"""What happened, for whoever watches, and who did it, for whoever audits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. Numbers grow in the order in which changes took effect."""

    kind: str  # noun.what: vgpu.created, node.lost
    subject: str  # the id of what it happened to
    message: str
    tenant_id: str | None = None  # who sees it beside operators
    node_id: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    time_ms: int = 0


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change that somebody asked for."""

    action: str
    subject: str
    token_id: str
    role: str
    request_id: str
    tenant_id: str | None
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    number: int = 0
    time_ms: int = 0
