"""All tables within one transaction: the port `Tables`."""

from __future__ import annotations

from functools import cached_property

from sqlalchemy import Connection

from gpupool.controller.core.ports import Totals
from gpupool.controller.store.tables.gpus import SqlGpus
from gpupool.controller.store.tables.journal import SqlJournal
from gpupool.controller.store.tables.nodes import SqlNodes
from gpupool.controller.store.tables.operations import SqlOperations
from gpupool.controller.store.tables.sessions import SqlSessions
from gpupool.controller.store.tables.tenants import SqlTenants
from gpupool.controller.store.tables.tokens import SqlTokens
from gpupool.controller.store.tables.totals import totals
from gpupool.controller.store.tables.vgpus import SqlVgpus

__all__ = ["SqlTables"]


class SqlTables:
    """Made for one transaction."""

    def __init__(self, connection: Connection, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms

    @property
    def now_ms(self) -> int:
        """See the port."""
        return self._now_ms

    def totals(self) -> Totals:
        """See the port."""
        return totals(self._connection)

    @cached_property
    def tenants(self) -> SqlTenants:
        """See the port."""
        return SqlTenants(self._connection)

    @cached_property
    def tokens(self) -> SqlTokens:
        """See the port."""
        return SqlTokens(self._connection)

    @cached_property
    def nodes(self) -> SqlNodes:
        """See the port."""
        return SqlNodes(self._connection, self._now_ms)

    @cached_property
    def gpus(self) -> SqlGpus:
        """See the port."""
        return SqlGpus(self._connection)

    @cached_property
    def vgpus(self) -> SqlVgpus:
        """See the port."""
        return SqlVgpus(self._connection)

    @cached_property
    def sessions(self) -> SqlSessions:
        """See the port."""
        return SqlSessions(self._connection)

    @cached_property
    def operations(self) -> SqlOperations:
        """See the port."""
        return SqlOperations(self._connection, self._now_ms)

    @cached_property
    def journal(self) -> SqlJournal:
        """See the port."""
        return SqlJournal(self._connection, self._now_ms)
