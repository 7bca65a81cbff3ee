"""PostgreSQL: how a change begins and ends with one round trip each.

Every round trip lets other threads run, and waits for a processor at either end: on a busy machine
that is most of what a change costs. So the transaction, the gate and all vGPUs of a batch that one
statement can make (see tables/singles.py) go out together, and so do the journal and COMMIT.
In pipeline mode the server takes one statement after the other and skips all that follow one that
fails (https://www.postgresql.org/docs/15/libpq-pipeline-mode.html): COMMIT is among them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from gpupool.controller.core.single import Single
from gpupool.controller.store.tables.journal import SqlJournal
from gpupool.controller.store.tables.singles import asked, place_of

_GATE = "LOCK TABLE gate IN EXCLUSIVE MODE"
_EVENTS = """
INSERT INTO events (time_ms, kind, subject, message, tenant_id, node_id, facts)
SELECT time_ms, kind, subject, message, tenant_id, node_id, facts
FROM json_to_recordset($1::json) AS told(time_ms bigint, kind text, subject text, message text,
  tenant_id text, node_id text, facts json)
"""
_AUDIT = """
INSERT INTO audit (time_ms, action, subject, token_id, role, request_id, tenant_id, before, after)
SELECT time_ms, action, subject, token_id, role, request_id, tenant_id, before, after
FROM json_to_recordset($2::json) AS done(time_ms bigint, action text, subject text, token_id text,
  role text, request_id text, tenant_id text, before json, after json)
"""
_JOURNAL = f"WITH told AS ({_EVENTS}) {_AUDIT}"  # most changes have both


class NotPlaced:
    """One statement could not do it; why is not known."""


NOT_PLACED = NotPlaced()


def begin(
    connection: Connection, journal: SqlJournal, singles: Sequence[Single[Any]], now_ms: int
) -> list[Any]:
    """A transaction behind the gate, and what became of each: what it answers, or NOT_PLACED."""
    connection.begin()
    drafts = [one.draft(now_ms) for one in singles]
    with _raw(connection) as cursor:
        raw = cursor.connection
        with raw.pipeline():
            cursor.execute(_GATE, prepare=True)  # first: it takes no snapshot
            cursors = [
                psycopg.RawCursor(raw).execute(*asked(one, draft), prepare=True)
                for one, draft in zip(singles, drafts, strict=True)
                if one.may_be_placed(now_ms)
            ]
        rows = iter([each.fetchone() for each in cursors])
    outcomes: list[Any] = []
    for one, draft in zip(singles, drafts, strict=True):
        row = next(rows) if one.may_be_placed(now_ms) else None
        if row is None:
            outcomes.append(NOT_PLACED)
            continue
        tenant_id, generation, place = place_of(row)
        outcomes.append(one.placed(journal, draft, tenant_id, place, generation))
    return outcomes


def commit(connection: Connection, journal: SqlJournal) -> None:
    """Writes the journal and commits."""
    events, entries = journal.take()
    with _raw(connection) as cursor, cursor.connection.pipeline():
        if events or entries:
            cursor.execute(_JOURNAL, (json.dumps(events), json.dumps(entries)), prepare=True)
        cursor.execute("COMMIT")


@contextmanager
def _raw(connection: Connection) -> Iterator[psycopg.RawCursor[Any]]:
    """The driver's, which takes statements as they are; its errors are raised as SQLAlchemy does,
    without any values.
    """
    # SQLAlchemy types it as any driver's; this module is only used with psycopg.
    raw: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    try:
        yield psycopg.RawCursor(raw)
    except psycopg.Error as error:
        if raw.broken:
            connection.invalidate(error)
        lost = raw.broken
        raise OperationalError("", None, error, connection_invalidated=lost) from error
