"""One vGPU in one statement does what the same change does in steps: the place that it finds, what
it charges, tells and refuses.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gpupool.bench import postgres
from gpupool.controller.core.errors import Kind, RefusedError
from gpupool.controller.core.event import AuditEntry
from gpupool.controller.core.licence import NO_LICENCE, Licence
from gpupool.controller.core.ports import Journal, Page, Tables
from gpupool.controller.core.single import Single
from gpupool.controller.core.tenant import Quota
from gpupool.controller.core.vgpu import Ask, Mode, Selector, Share, Strategy, Vgpu
from gpupool.controller.store.sql import Settings, SqlStore
from tests.controller.pool import Pool
from tests.controller.store.test_sql import run_all

_numbers = itertools.count()
_SELECTORS = (
    Selector(),
    Selector(models=("H100", "none")),
    Selector(node="n2"),
    Selector(labels={"zone": "a"}),
    Selector(gpu_memory_mib=900),
)


def single(
    tenant: str,
    ask: Ask,
    selector: Selector = _SELECTORS[0],
    strategy: Strategy = Strategy.BINPACK,
    licence: Licence = NO_LICENCE,
) -> Single[Vgpu]:
    """What somebody asks for."""

    def finish(journal: Journal, made: Vgpu) -> Vgpu:
        entry = AuditEntry("vgpu.create", made.id, "token-1", "admin", "r1", None, None, {"a": 1})
        journal.audit(entry)
        return made

    return Single(tenant, ask, selector, strategy, licence, finish)


def outcome(make: Callable[[], Vgpu]) -> tuple[Any, ...]:
    """What can be compared between two databases."""
    try:
        made = make()
    except RefusedError as error:
        return error.kind, error.detail
    return made.gpu_uuid, made.node_name, made.endpoint, made.generation, made.held, made.state


def new_pool(cluster: postgres.Cluster) -> Pool:
    """Three unequal GPUs, and a tenant that may not have all of them."""
    url = cluster.create(f"singles_{next(_numbers)}", "template_of_tests")
    pool = Pool(SqlStore(Settings(url)))
    pool.tenant("t", Quota(vgpus=9, compute_percent=250))
    for name, memory_mib, zone in (("n1", 1000, "a"), ("n2", 800, "b"), ("n3", 900, "b")):
        pool.node(name, memory_mib=memory_mib, zone=zone)
        time.sleep(0.002)  # ties go to the smaller id, which is the older one
    return pool


@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # making one smaller takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    wanted=st.lists(
        st.tuples(
            st.sampled_from([0, 5, 30, 60]),
            st.sampled_from([0, 100, 400]),
            st.sampled_from(Strategy),
            st.sampled_from(_SELECTORS),
        ),
        min_size=6,
        max_size=16,
    )
)
def test_it_finds_what_the_scheduler_finds(
    cluster: postgres.Cluster, wanted: list[tuple[int, int, Strategy, Selector]]
) -> None:
    """The same requests on two equal pools, by statement and in steps."""
    by_statement, in_steps = new_pool(cluster), new_pool(cluster)
    for number, (compute, memory, strategy, selector) in enumerate(wanted):
        ask = Ask(f"v{number % 14}", Share(compute, memory))
        one = single("t", ask, strategy=strategy, selector=selector)
        found = outcome(partial(by_statement.store.allocate, one))
        assert found == outcome(partial(in_steps.store.change, one.change))
    for pool in (by_statement, in_steps):
        pool.check()
        pool.store.close()


def test_it_tells_what_the_change_tells(pool: Pool) -> None:
    tenant = pool.tenant()
    node = pool.node()
    made = pool.store.allocate(single("acme", Ask("a", Share(10, 100))))
    told = pool.store.read(lambda tables: tables.journal.events(0, 100))[-1]
    assert (told.kind, told.subject, told.tenant_id) == ("vgpu.created", made.id, tenant)
    assert told.facts == {"name": "a", "state": "placed", "gpu": made.gpu_uuid, "node": "n1"}
    entry = pool.store.read(lambda tables: tables.journal.audit_page(0, 100))[-1]
    assert (entry.subject, entry.before, entry.after) == (made.id, None, {"a": 1})
    assert pool.vgpu(made.id) == made
    node.report()
    assert pool.vgpu(made.id).state.value == "ready"


@pytest.mark.parametrize(
    ("tenant", "ask", "more", "kind"),
    [
        ("nobody", Ask("a", Share(10, 100)), {}, Kind.NOT_FOUND),
        ("acme", Ask("there", Share(10, 100)), {}, Kind.NAME_TAKEN),
        ("acme", Ask("a", Share(60, 100)), {}, Kind.NO_ROOM),
        ("acme", Ask("a", Share(10, 900)), {}, Kind.QUOTA),
        ("acme", Ask("a", Share(10, 0)), {}, Kind.QUOTA),  # a quota of memory needs a limit
        ("acme", Ask("a", Share(10, 100)), {"licence": Licence(expires_ms=1)}, Kind.LICENCE),
    ],
)
def test_what_may_not_be_is_refused(
    pool: Pool, tenant: str, ask: Ask, more: dict[str, Any], kind: Kind
) -> None:
    pool.tenant("acme", Quota(memory_mib=500))
    pool.node()
    pool.store.allocate(single("acme", Ask("there", Share(50, 100))))
    with pytest.raises(RefusedError) as caught:
        pool.store.allocate(single(tenant, ask, **more))
    assert caught.value.kind is kind
    pool.check()


def test_an_id_comes_before_a_name(pool: Pool) -> None:
    """A tenant may be called as another's id."""
    first = pool.tenant("acme")
    pool.tenant(first)
    pool.node()
    assert pool.store.allocate(single(first, Ask("a", Share(10, 100)))).tenant_id == first


def test_on_demand_ones_hold_nothing(pool: Pool) -> None:
    pool.tenant("acme")
    pool.node()
    made = pool.store.allocate(single("acme", Ask("a", Share(10, 100), mode=Mode.ON_DEMAND)))
    assert (made.gpu_id, made.state.value) == (None, "idle")


def test_those_that_wait_together_are_answered_each(pool: Pool) -> None:
    """Made, refused and other changes in the same commits: what one meets is not the others'."""
    pool.tenant("acme")
    pool.node(gpus=2)
    made: list[str] = []
    refused: list[Kind] = []

    def one(number: int) -> None:
        if number % 4 == 3:
            pool.tenant(f"t{number}")
            return
        name = "same" if number % 4 == 2 else f"v{number}"
        try:
            made.append(pool.store.allocate(single("acme", Ask(name, Share(10, 10)))).name)
        except RefusedError as error:
            refused.append(error.kind)

    run_all([partial(one, number) for number in range(48)])
    assert made.count("same") <= 1
    assert len(made) == 20
    assert set(refused) <= {Kind.NAME_TAKEN, Kind.NO_ROOM}

    def tenants(tables: Tables) -> int:
        return len(tables.tenants.page(Page(100)))

    assert pool.store.read(tenants) == 13
    pool.check()
