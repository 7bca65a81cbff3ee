"""One reserved vGPU, asked for as data: the change that is made most often.

A database may do it in one statement. What it did not do that way, for whatever reason, it does
through `change`, which alone decides and explains: the statement only ever says yes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from gpupool.controller.core import allocation
from gpupool.controller.core.errors import not_found
from gpupool.controller.core.licence import Licence
from gpupool.controller.core.ports import Journal, Tables
from gpupool.controller.core.scheduler import Candidate, Wanted
from gpupool.controller.core.vgpu import Ask, Mode, Request, Selector, Strategy, Vgpu

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Single(Generic[T]):
    """What is wanted, and what becomes of it. `finish` writes into the journal and nowhere else."""

    tenant: str  # id or name
    ask: Ask
    selector: Selector
    strategy: Strategy
    licence: Licence
    finish: Callable[[Journal, Vgpu], T]

    def change(self, tables: Tables) -> T:
        """As a change like any other. Raises RefusedError."""
        tenant = tables.tenants.get(self.tenant) or tables.tenants.by_name(self.tenant)
        if tenant is None:
            raise not_found("tenant", self.tenant)
        made = allocation.create(tables, self._request(tenant.id), self.licence)[0]
        return self.finish(tables.journal, made)

    def may_be_placed(self, now_ms: int) -> bool:
        """Whether one statement may do it."""
        return self.ask.mode is Mode.RESERVED and not self.licence.expired(now_ms)

    @property
    def wanted(self) -> Wanted:
        """What the scheduler looks for."""
        return Wanted(self.ask.share, self.selector, self.strategy)

    def placed(
        self, journal: Journal, draft: Vgpu, tenant_id: str, place: Candidate, generation: int
    ) -> T:
        """The database has put it there, and nothing is left to decide: tells and returns what
        `change` would have.
        """
        made = allocation.at(replace(draft, tenant_id=tenant_id), place, generation)
        journal.emit(allocation.creation(made))
        return self.finish(journal, made)

    def draft(self, now_ms: int) -> Vgpu:
        """The vGPU before it has a tenant and a place."""
        return allocation.draft(self._request(""), self.ask, now_ms)

    def _request(self, tenant_id: str) -> Request:
        return Request(tenant_id, (self.ask,), self.selector, self.strategy)
