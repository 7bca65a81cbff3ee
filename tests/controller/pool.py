"""Short ways to fill a store and to look whether it still adds up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gpupool.controller.core import allocation, claims, consistency, fleet, reporting
from gpupool.controller.core.gpu import GpuFacts, GpuReport
from gpupool.controller.core.identity import new_id
from gpupool.controller.core.licence import NO_LICENCE, Licence
from gpupool.controller.core.node import (
    DesiredVgpu,
    Registered,
    Registration,
    Report,
    Reported,
    SessionReport,
)
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.single import Single
from gpupool.controller.core.tenant import Quota, Tenant
from gpupool.controller.core.token import Role, Token, digest, new_secret
from gpupool.controller.core.vgpu import (
    Ask,
    Mode,
    Request,
    Selector,
    Share,
    Strategy,
    Vgpu,
    VgpuReport,
)
from gpupool.controller.store.sql import SqlStore

NO_QUOTA = Quota()
ANYWHERE = Selector()


@dataclass
class FakeNode:
    """A hostd that does all it is told, when it is told to report."""

    pool: Pool
    name: str
    registered: Registered
    uuids: list[str]
    sequence: int = 0
    sessions: list[SessionReport] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The controller's name for it."""
        return self.registered.node_id

    def report(self, **changes: object) -> Reported:
        """Takes over what is desired and says so."""
        self.sequence += 1
        return self.send(self.picture(self.sequence, **changes))

    def picture(self, sequence: int, **changes: object) -> Report:
        """What a node that has done everything has."""
        store = self.pool.store
        desired = store.read(lambda tables: fleet.desired(tables, self.id))
        content: dict[str, object] = {
            "applied_generation": desired.generation,
            "gpus": tuple(GpuReport(one.gpu_uuid, one.pool) for one in desired.pools),
            "vgpus": tuple(
                VgpuReport(one.id, one.share.compute_percent, one.share.memory_mib)
                for one in desired.vgpus
            ),
            "sessions": tuple(self.sessions),
        }
        return Report(
            node_id=self.id,
            incarnation=self.registered.incarnation,
            sequence=sequence,
            # Each of them has the type of its field; a dict of all has the type of none.
            **(content | changes),  # type: ignore[arg-type]
        )

    def send(self, report: Report) -> Reported:
        """One report."""
        return self.pool.store.change(lambda tables: reporting.report(tables, report))

    def claim(
        self, session_id: str, vgpu: str, tenant_id: str = "", other_gpus: Sequence[str] = ()
    ) -> DesiredVgpu:
        """A client comes."""
        request = claims.ClaimRequest(
            self.id, session_id, vgpu, tenant_id, self.sequence, other_gpus=tuple(other_gpus)
        )
        return self.pool.store.change(
            lambda tables: claims.claim(tables, request, self.pool.licence)
        )

    def release(self, session_id: str) -> None:
        """A client goes."""
        self.pool.store.change(lambda tables: claims.release(tables, self.id, session_id))


class Pool:
    """A store and short ways to fill it."""

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self.licence: Licence = NO_LICENCE

    def tenant(self, name: str = "acme", quota: Quota = NO_QUOTA) -> str:
        """A tenant; its id."""

        def work(tables: Tables) -> str:
            tenant = Tenant(new_id("tenant", tables.now_ms), name, quota)
            tables.tenants.add(tenant)
            return tenant.id

        return self.store.change(work)

    def token(self, role: Role, tenant_id: str | None = None, name: str = "test") -> str:
        """A token; its secret."""
        secret = new_secret()

        def work(tables: Tables) -> None:
            token = Token(
                new_id("token", tables.now_ms),
                name,
                role,
                tenant_id,
                "node" if role is Role.NODE else None,
            )
            tables.tokens.add(token, digest(secret))

        self.store.change(work)
        return secret

    def node(
        self,
        name: str = "n1",
        gpus: int = 1,
        memory_mib: int = 80_000,
        model: str = "H100",
        **labels: str,
    ) -> FakeNode:
        """A node that registers."""
        uuids = [f"GPU-{name}-{number}" for number in range(gpus)]
        facts = tuple(
            GpuFacts(uuid, number, model, memory_mib) for number, uuid in enumerate(uuids)
        )
        registration = Registration(name, facts, labels, f"tls://{name}:9179", "1.0")
        registered = self.store.change(
            lambda tables: fleet.register(tables, registration, self.licence)
        )
        return FakeNode(self, name, registered, uuids)

    def create(
        self,
        tenant_id: str,
        name: str,
        compute_percent: int = 25,
        memory_mib: int = 1000,
        mode: Mode = Mode.RESERVED,
        selector: Selector = ANYWHERE,
        strategy: Strategy = Strategy.BINPACK,
    ) -> Vgpu:
        """One vGPU. Raises RefusedError."""
        ask = Ask(name, Share(compute_percent, memory_mib), mode=mode)
        return self.store.allocate(
            Single(tenant_id, ask, selector, strategy, self.licence, lambda _, made: made)
        )

    def request(self, request: Request) -> list[Vgpu]:
        """All vGPUs of a request. Raises RefusedError."""
        return self.store.change(lambda tables: allocation.create(tables, request, self.licence))

    def vgpu(self, vgpu_id: str) -> Vgpu:
        """As it is now."""
        found = self.store.read(lambda tables: tables.vgpus.get(vgpu_id))
        assert found is not None
        return found

    def is_gone(self, vgpu_id: str) -> bool:
        """Whether nothing of it is left."""
        return self.store.read(lambda tables: tables.vgpus.get(vgpu_id)) is None

    def delete(self, vgpu_id: str) -> None:
        """Deletes it."""

        def work(tables: Tables) -> None:
            vgpu = tables.vgpus.get(vgpu_id)
            assert vgpu is not None
            allocation.delete(tables, vgpu)

        self.store.change(work)

    def check(self) -> None:
        """Nothing is given out twice, and every sum is that of its parts."""
        assert self.store.read(consistency.faults) == []
