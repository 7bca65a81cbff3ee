"""One database: connections, transactions, and what is tried again.

Changes take effect one after the other, in all replicas:

- In one process those that wait go together, in one commit (see turns.py).
- SQLite: BEGIN IMMEDIATE, with a lock of this process before it, so that threads wait their turn
  instead of polling the file.
- PostgreSQL: SERIALIZABLE, behind a lock on the empty table `gate`. LOCK TABLE comes first and
  takes no snapshot, so a change sees all that the one before it did
  (https://www.postgresql.org/docs/15/sql-lock.html). Without it, allocations would conflict with
  each other all the time, since all of them look for the best GPU: they would be right, but mostly
  be tried again. So the conflicts that are left (40001, 40P01) are rare; they are retried.

A change that was cut off before COMMIT was sent is tried again; afterwards nobody knows whether it
took effect, and whoever asked is told so.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, bindparam, create_engine, event, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from gpupool.controller.core.errors import StoreError
from gpupool.controller.core.gpu import GpuUse
from gpupool.controller.core.node import Beat
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.single import Single
from gpupool.controller.store import pipelined
from gpupool.controller.store.models import BeatRow, GpuRow, UseRow
from gpupool.controller.store.tables import SqlTables
from gpupool.controller.store.tables.journal import SqlJournal
from gpupool.controller.store.turns import Turns, Waiting

log = logging.getLogger("gpupool.controller.store")
T = TypeVar("T")

_INCARNATIONS = select(BeatRow.node_id, BeatRow.incarnation).where(
    BeatRow.node_id.in_(bindparam("nodes", expanding=True))
)
# One that registers again meanwhile is not written to.
_HEARD = (
    update(BeatRow)
    .where(
        BeatRow.node_id == bindparam("node"), BeatRow.incarnation == bindparam("its_incarnation")
    )
    .values(beat=BeatRow.beat + 1, heard_ms=bindparam("now_ms"))
)
_ATTEMPTS = 8
_FIRST_PAUSE_S = 0.005
_CONFLICTS = {"40001", "40P01"}  # serialization_failure, deadlock_detected
_TOO_LONG = {"55P03", "57014"}  # lock_not_available, query_canceled (statement_timeout)


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach the database."""

    url: str
    connections: int = 16
    timeout_s: float = 5.0  # for a connection, a lock, a statement


class SqlStore:
    """The port `Store`."""

    def __init__(self, settings: Settings, now_ms: Callable[[], int] | None = None) -> None:
        self._settings = settings
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self.engine = make_engine(settings)
        self._postgres = self.engine.dialect.name == "postgresql"
        self._turn = threading.Lock()  # SQLite has one writer
        self._turns = Turns(self._together, 2 * settings.timeout_s)
        self.retries = 0  # for the metrics

    def close(self) -> None:
        """Lets go of every connection."""
        self.engine.dispose()

    def read(self, work: Callable[[Tables], T]) -> T:
        """See the port."""
        return self._tries(lambda: self._read(work))

    def change(self, work: Callable[[Tables], T]) -> T:
        """See the port."""
        done: T = self._turns.take(work)
        return done

    def allocate(self, one: Single[T]) -> T:
        """See the port."""
        done: T = self._turns.take(one.change, one if self._postgres else None)
        return done

    def beat(self, beats: Sequence[Beat]) -> set[str]:
        """See the port. READ COMMITTED and no gate: it touches rows that no change decides by."""

        told = {one.node_id: one.incarnation for one in beats}

        def work(connection: Connection) -> set[str]:
            rows = connection.execute(_INCARNATIONS, {"nodes": list(told)})
            known = {node_id for node_id, incarnation in rows if told[node_id] == incarnation}
            if known:
                now_ms = self._now_ms()
                heard = [
                    {"node": node_id, "its_incarnation": told[node_id], "now_ms": now_ms}
                    for node_id in sorted(known)  # one order: no deadlock
                ]
                connection.execute(_HEARD, heard)
            return known

        return self._aside(work)

    def use(self, node_id: str, uses: Sequence[GpuUse]) -> None:
        """See the port."""

        def work(connection: Connection) -> None:
            ids = {
                uuid: gpu_id
                for gpu_id, uuid in connection.execute(
                    select(GpuRow.id, GpuRow.uuid).where(GpuRow.node_id == node_id)
                )
            }
            for one in sorted(uses, key=lambda each: each.uuid):
                if one.uuid in ids:
                    connection.execute(
                        update(UseRow)
                        .where(UseRow.gpu_id == ids[one.uuid])
                        .values(load_percent=one.load_percent, memory_used_mib=one.memory_used_mib)
                    )

        self._aside(work)

    def _aside(self, work: Callable[[Connection], T]) -> T:
        def once() -> T:
            with self._connection("READ COMMITTED") as connection:
                self._begin(connection, "BEGIN IMMEDIATE")
                answer = work(connection)
                connection.commit()
                return answer

        if self._postgres:
            return self._tries(once)  # all of it may be done twice
        with self._writing():
            return self._tries(once)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer of this process at a time: waiting here takes no connection."""
        if not self._turn.acquire(timeout=2 * self._settings.timeout_s):
            raise StoreError("too many changes wait for the database")
        try:
            yield
        finally:
            self._turn.release()

    def _read(self, work: Callable[[Tables], T]) -> T:
        with self._connection("REPEATABLE READ") as connection:
            self._begin(connection, "BEGIN")
            return work(SqlTables(connection, self._now_ms()))

    def _together(self, batch: Sequence[Waiting]) -> None:
        """Changes that waited, in one transaction."""
        if self._postgres:
            self._tries(lambda: self._change(batch))
            return
        with self._writing():
            self._tries(lambda: self._change(batch))

    def _change(self, batch: Sequence[Waiting]) -> None:
        """First as if none of them would raise. Where one does, again with a savepoint for each,
        which costs as much as half of the change itself.
        """
        with self._connection("SERIALIZABLE") as connection:
            for careful in (False, True):
                now_ms = self._now_ms()
                journal = SqlTables(connection, now_ms).journal
                left = self._begin_change(connection, journal, batch, now_ms)
                if self._work(connection, journal, left, careful=careful):
                    break
                connection.rollback()
                if len(batch) == 1:
                    return
            try:
                self._commit(connection, journal)
            except DBAPIError as error:
                if _state(error) in _CONFLICTS:
                    raise  # PostgreSQL has undone it
                raise StoreError(
                    f"the database was lost at COMMIT: {_brief(error)}", unsure=True
                ) from error

    def _begin_change(
        self, connection: Connection, journal: SqlJournal, batch: Sequence[Waiting], now_ms: int
    ) -> list[tuple[Waiting, bool]]:
        """Those that are still to be done, and whether to expect that they will be refused."""
        if not self._postgres:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return [(one, False) for one in batch]
        singles = [one.single for one in batch if one.single is not None]
        outcomes = iter(pipelined.begin(connection, journal, singles, now_ms))
        left = []
        for one in batch:
            one.result = one.error = None
            outcome = next(outcomes) if one.single is not None else None
            if outcome is None or outcome is pipelined.NOT_PLACED:
                left.append((one, outcome is not None and len(batch) > 1))
            else:
                one.result = outcome
        return left

    def _work(
        self,
        connection: Connection,
        journal: SqlJournal,
        left: Sequence[tuple[Waiting, bool]],
        *,
        careful: bool,
    ) -> bool:
        """Does what they ask for. False: one raised, and nothing undid it."""
        for one, doubtful in left:
            one.result = one.error = None
            savepoint = connection.begin_nested() if careful or doubtful else None
            tables = SqlTables(connection, journal.now_ms)
            try:
                one.result = one.work(tables)
            except Exception as error:
                if _is_of_all(error):
                    raise
                one.error = error
                if savepoint is None:
                    return False
                savepoint.rollback()
            else:
                if savepoint is not None:
                    savepoint.commit()
                tables.journal.hand_over(journal)
        return True

    def _commit(self, connection: Connection, journal: SqlJournal) -> None:
        if self._postgres:
            pipelined.commit(connection, journal)
            return
        journal.flush()
        connection.commit()

    @contextmanager
    def _connection(self, isolation: str) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            if self._postgres:
                connection = connection.execution_options(isolation_level=isolation)
            yield connection

    def _begin(self, connection: Connection, statement: str) -> None:
        """The driver leaves SQLite's transactions to us (see make_engine)."""
        if not self._postgres:
            connection.exec_driver_sql(statement)

    def _tries(self, once: Callable[[], T]) -> T:
        """Runs it until it succeeds, a bounded number of times."""
        pause_s = _FIRST_PAUSE_S
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return once()
            except IntegrityError:
                raise
            except (DBAPIError, PoolTimeoutError) as error:
                again = isinstance(error, DBAPIError) and (
                    _state(error) in _CONFLICTS or (error.connection_invalidated and attempt <= 2)
                )
                if not again or attempt == _ATTEMPTS:
                    raise StoreError(_brief(error)) from error
                self.retries += 1
                log.debug("database conflict, attempt %d: %s", attempt, _brief(error))
            time.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311  no secret
            pause_s = min(pause_s * 2, 0.1)
        raise AssertionError("unreachable")


def _is_of_all(error: Exception) -> bool:
    """Whether it ends the transaction, and not only the one change that met it."""
    return isinstance(error, DBAPIError) and not isinstance(error, (IntegrityError, DataError))


def _state(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")


def _brief(error: SQLAlchemyError) -> str:
    """One line, without the statement and its values."""
    cause = getattr(error, "orig", None) or error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    if _state(error) in _TOO_LONG if isinstance(error, DBAPIError) else False:
        return f"the database took too long ({lines[0]})"
    return lines[0]


def make_engine(settings: Settings) -> Engine:
    """Connections as everything here expects them."""
    url = make_url(settings.url)
    timeout_ms = int(settings.timeout_s * 1000)
    options: dict[str, Any] = {
        "pool_size": settings.connections,
        "max_overflow": 0,
        "pool_timeout": settings.timeout_s,
        "hide_parameters": True,  # errors and logs do not show them
    }
    if url.get_backend_name() == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
        options["connect_args"] = {
            "connect_timeout": max(2, int(settings.timeout_s)),
            "application_name": "gpupool-controller",
            "options": f"-c statement_timeout={timeout_ms} -c lock_timeout={timeout_ms} "
            f"-c idle_in_transaction_session_timeout={4 * timeout_ms}",
            # A replica whose network is gone must not keep the gate for hours.
            "keepalives_idle": 5,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        }
        return create_engine(url, **options)
    options["connect_args"] = {"timeout": settings.timeout_s, "isolation_level": None}
    engine = create_engine(url, **options)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:  # noqa: ARG001
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        # FULL: what was answered is on the disk, also after a power cut (https://sqlite.org/wal.html).
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine


def answers(store: SqlStore) -> None:
    """Raises StoreError where the database does not answer."""
    try:
        with store.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        raise StoreError(_brief(error)) from error
