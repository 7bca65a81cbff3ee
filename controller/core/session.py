"""Ending a session: its node is told, and does it. One change a function (see ports).

A session's name is that of its node and its number there: `NODE_ID.7`. One that uses several vGPUs
is ended as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpupool.controller.core.errors import Kind, RefusedError, not_found
from gpupool.controller.core.event import Event
from gpupool.controller.core.identity import new_id
from gpupool.controller.core.node import Session
from gpupool.controller.core.operation import Operation, OperationState
from gpupool.controller.core.ports import Tables

KIND = "session.end"
_MOST_NUMBER = 20  # digits


def name_of(session: Session) -> str:
    """What the API calls it."""
    return f"{session.node_id}.{session.id}"


def find(tables: Tables, name: str, tenant_id: str | None) -> list[Session]:
    """Its rows, one for each vGPU; with a tenant only where it is that tenant's. Raises
    RefusedError.
    """
    node_id, _, number = name.partition(".")
    rows = tables.sessions.named(node_id, number)
    if not rows or (tenant_id is not None and any(one.tenant_id != tenant_id for one in rows)):
        raise not_found("session", name)
    return rows


def end(tables: Tables, rows: Sequence[Session]) -> Operation:
    """Asks its node to end it; the operation is over when the node says that it is gone. The same
    call again answers the same. Raises RefusedError.
    """
    first = rows[0]
    name = name_of(first)
    running = [one for one in tables.operations.running(name) if one.kind == KIND]
    if running:
        return running[0]
    if not all(one.confirmed for one in rows) or not _has_number(first):
        raise RefusedError(
            Kind.IN_USE, f"Session {name} is just beginning. Look at the list again in a second."
        )
    operation = Operation(
        id=new_id("operation", tables.now_ms),
        kind=KIND,
        subject=name,
        message=f"waits for node {first.node_name} to end it",
        tenant_id=first.tenant_id,
        created_ms=tables.now_ms,
        updated_ms=tables.now_ms,
    )
    tables.operations.add(operation)
    mark(tables, rows)
    return operation


def mark(tables: Tables, rows: Sequence[Session]) -> None:
    """Their node is told from now on."""
    fresh = [one for one in rows if not one.ending and _has_number(one)]
    for one in fresh:
        tables.sessions.set_ending(one)
        _tell(tables, one, "ending", "is being ended")
    for node_id in {one.node_id for one in fresh}:
        tables.nodes.bump(node_id)


def over(tables: Tables, session: Session, lost: str = "") -> None:
    """Removes one that is gone, or of which nothing is known any more (`lost` says why)."""
    tables.sessions.remove(session)
    if not session.ending or tables.sessions.named(session.node_id, session.id):
        return
    state = OperationState.FAILED if lost else OperationState.DONE
    for operation in tables.operations.running(name_of(session)):
        tables.operations.end(operation.id, state, lost)
    if not lost:
        _tell(tables, session, "ended", "was ended")


def _has_number(session: Session) -> bool:
    """A client that has claimed a vGPU and has no session yet has none."""
    return session.id.isascii() and session.id.isdigit() and len(session.id) <= _MOST_NUMBER


def _tell(tables: Tables, session: Session, what: str, text: str) -> None:
    message = f"session {session.id} ({session.program}) on {session.node_name} {text}"
    tables.journal.emit(
        Event(f"session.{what}", name_of(session), message, session.tenant_id, session.node_id)
    )
