"""Giving out, resizing and taking back, on real databases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupool.controller.core import allocation
from gpupool.controller.core.errors import Kind, RefusedError
from gpupool.controller.core.licence import Licence
from gpupool.controller.core.tenant import Quota
from gpupool.controller.core.vgpu import (
    Ask,
    Change,
    Mode,
    Request,
    Selector,
    Share,
    State,
    Strategy,
    Vgpu,
)
from tests.controller.pool import Pool


def refused(kind: Kind) -> pytest.RaisesExc[RefusedError]:
    """A refusal of this kind."""
    return pytest.raises(RefusedError, check=lambda error: error.kind is kind)


def resize(pool: Pool, vgpu: Vgpu, change: Change) -> Vgpu:
    """As PATCH does."""
    return pool.store.change(
        lambda tables: allocation.resize(tables, pool.vgpu(vgpu.id), change, pool.licence)
    )


def test_a_reserved_vgpu_has_its_gpu_at_once(pool: Pool) -> None:
    tenant, node = pool.tenant(), pool.node()
    vgpu = pool.create(tenant, "a", 60, 1000)
    assert (vgpu.state, vgpu.gpu_uuid, vgpu.node_id) == (State.PLACED, node.uuids[0], node.id)
    assert vgpu.endpoint == "tls://n1:9179"
    with refused(Kind.NO_ROOM):
        pool.create(tenant, "b", 41, 1000)
    pool.create(tenant, "c", 40, 1000)
    pool.check()


def test_memory_counts_like_compute(pool: Pool) -> None:
    tenant = pool.tenant()
    pool.node(memory_mib=1000)
    pool.create(tenant, "a", 1, 999)
    with refused(Kind.NO_ROOM):
        pool.create(tenant, "b", 1, 2)
    pool.create(tenant, "c", 1, 1)
    pool.check()


def test_names_are_a_tenants_own(pool: Pool) -> None:
    one, other = pool.tenant("one"), pool.tenant("other")
    pool.node()
    pool.create(one, "a")
    with refused(Kind.NAME_TAKEN):
        pool.create(one, "a")
    pool.create(other, "a")
    pool.check()


def test_binpack_fills_and_spread_does_not(pool: Pool) -> None:
    tenant = pool.tenant()
    pool.node(gpus=3)
    share = Share(20, 100)

    def gpus(strategy: Strategy) -> set[str | None]:
        asks = [Ask(f"{strategy.value}{number}", share) for number in range(3)]
        made = [pool.request(Request(tenant, (ask,), strategy=strategy))[0] for ask in asks]
        return {vgpu.gpu_id for vgpu in made}

    assert len(gpus(Strategy.SPREAD)) == 3
    assert len(gpus(Strategy.BINPACK)) == 1
    pool.check()


@pytest.mark.parametrize(
    ("selector", "node"),
    [
        (Selector(models=("A100",)), "n2"),
        (Selector(labels={"zone": "b"}), "n2"),
        (Selector(labels={"zone": "a"}), "n1"),
        (Selector(node="n2"), "n2"),
        (Selector(gpu_memory_mib=80_000), "n1"),
        (Selector(labels={"zone": "c"}), None),
        (Selector(models=("A100",), labels={"zone": "a"}), None),
    ],
)
def test_selectors(pool: Pool, selector: Selector, node: str | None) -> None:
    tenant = pool.tenant()
    pool.node("n1", zone="a")
    pool.node("n2", model="A100", memory_mib=40_000, zone="b")
    if node is None:
        with refused(Kind.NO_ROOM):
            pool.create(tenant, "a", selector=selector)
    else:
        assert pool.create(tenant, "a", selector=selector).node_name == node


def test_a_group_is_on_one_node_or_nowhere(pool: Pool) -> None:
    tenant = pool.tenant()
    pool.node("n1", gpus=2)
    pool.node("n2", gpus=3)
    asks = tuple(Ask(f"v{number}", Share(70, 100)) for number in range(3))
    made = pool.request(Request(tenant, asks))
    assert {vgpu.node_name for vgpu in made} == {"n2"}
    assert len({vgpu.gpu_id for vgpu in made}) == 3
    more = tuple(replace(ask, name=f"more-{ask.name}") for ask in asks)
    with refused(Kind.NO_ROOM):
        pool.request(Request(tenant, more))
    pool.check()
    pairs = tuple(Ask(f"pair{number}", Share(50, 100)) for number in range(2))
    packed = pool.request(Request(tenant, pairs, distinct_gpus=False))
    assert len({vgpu.node_name for vgpu in packed}) == 1
    pool.check()


def test_a_quota_is_kept_to_the_unit(pool: Pool) -> None:
    tenant = pool.tenant(quota=Quota(vgpus=3, compute_percent=50, memory_mib=2000))
    pool.node(gpus=4)
    pool.create(tenant, "a", 50, 1000)
    with refused(Kind.QUOTA) as caught:
        pool.create(tenant, "b", 1, 1)
    assert "compute_percent: asked 1, in use 50 of 50" in caught.value.detail
    with refused(Kind.QUOTA):
        pool.create(tenant, "b", 0, 0)  # not limited, where memory is
    pool.create(tenant, "b", 0, 1000)
    pool.create(tenant, "c", 90, 5000, Mode.ON_DEMAND)  # holds nothing yet
    with refused(Kind.QUOTA):
        pool.create(tenant, "d", 0, 1, Mode.ON_DEMAND)
    pool.check()


def test_a_licence_that_has_expired_stops_what_is_new_only(pool: Pool) -> None:
    tenant, node = pool.tenant(), pool.node()
    vgpu = pool.create(tenant, "a", 50)
    pool.licence = Licence(10, expires_ms=1)
    with refused(Kind.LICENCE):
        pool.create(tenant, "b")
    with refused(Kind.LICENCE):
        resize(pool, vgpu, Change(compute_percent=51))
    assert resize(pool, vgpu, Change(compute_percent=49)).share.compute_percent == 49
    assert node.report().accepted
    assert pool.vgpu(vgpu.id).state is State.READY


def test_a_licence_bounds_gpus(pool: Pool) -> None:
    tenant = pool.tenant()
    pool.licence = Licence(gpus=2)
    pool.node("n1", gpus=1)
    pool.node("n2", gpus=3)
    for number in range(2):
        pool.create(tenant, f"a{number}", 100)
    with refused(Kind.NO_ROOM):
        pool.create(tenant, "b", 1)
    lacking = pool.store.read(
        lambda tables: allocation.explain(
            tables, Request(tenant, (Ask("b", Share(1, 0)),)), operator=False
        )
    )
    assert "2 beyond the licence" in lacking.detail


def test_growing_takes_at_once_and_shrinking_waits_for_the_node(pool: Pool) -> None:
    tenant, node = pool.tenant(), pool.node()
    vgpu = pool.create(tenant, "a", 50)
    node.report()
    resize(pool, vgpu, Change(compute_percent=20))
    pool.check()
    with refused(Kind.NO_ROOM):
        pool.create(tenant, "b", 60)  # 50 are held until the node has shrunk it
    node.report()
    pool.create(tenant, "b", 60)
    with refused(Kind.NO_ROOM) as caught:
        resize(pool, vgpu, Change(compute_percent=41))
    assert "20 % and" in caught.value.detail
    assert resize(pool, vgpu, Change(compute_percent=40)).held.compute_percent == 40
    pool.check()


def test_a_quota_is_not_made_smaller_than_what_is_used(pool: Pool) -> None:
    tenant, node = pool.tenant(), pool.node()
    vgpu = pool.create(tenant, "a", 50, 1000)
    node.report()
    picture = node.picture(2)
    used = tuple(replace(one, memory_used_mib=600) for one in picture.vgpus)
    node.send(replace(picture, vgpus=used))
    with refused(Kind.IN_USE):
        resize(pool, vgpu, Change(memory_mib=599))
    resize(pool, vgpu, Change(memory_mib=600))


def test_a_deleted_vgpu_holds_its_share_until_the_node_says_that_it_is_gone(pool: Pool) -> None:
    tenant, node = pool.tenant(), pool.node()
    vgpu = pool.create(tenant, "a", 100)
    node.report()
    old = node.picture(7)
    pool.delete(vgpu.id)
    pool.delete(vgpu.id)  # again: the same operation
    with refused(Kind.NO_ROOM):
        pool.create(tenant, "b", 100)
    node.send(replace(old, sequence=2, vgpus=()))  # without it, but of an old generation
    with refused(Kind.NO_ROOM):
        pool.create(tenant, "b", 100)
    node.sequence = 2
    node.report()
    pool.create(tenant, "b", 100)
    pool.check()


def test_refusals_say_what_was_lacking(pool: Pool) -> None:
    tenant = pool.tenant()
    pool.node("n1", gpus=2)
    pool.node("n2", model="A100")
    pool.create(tenant, "a", 70)
    request = Request(tenant, (Ask("b", Share(100, 90_000)),), Selector(models=("H100",)))
    told = pool.store.read(lambda tables: allocation.explain(tables, request, operator=True))
    reasons = {each["reason"]: each["gpus"] for each in told.facts["lacking"]}
    assert reasons == {"model": 1, "compute": 1, "memory": 1}
    assert {each["node"] for each in told.facts["nodes"]} == {"n1", "n2"}
    hidden = pool.store.read(lambda tables: allocation.explain(tables, request, operator=False))
    assert "nodes" not in hidden.facts
