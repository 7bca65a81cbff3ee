"""A change that takes longer than a request: who waits for it asks here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class OperationState(str, Enum):
    """Where it stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. It ends when the node reports what was asked for, or why not."""

    id: str
    kind: str  # vgpu.delete, gpu.pool
    subject: str
    state: OperationState = OperationState.RUNNING
    progress_percent: int = 0
    message: str = ""
    tenant_id: str | None = None
    created_ms: int = 0
    updated_ms: int = 0
