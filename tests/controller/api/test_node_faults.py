"""What goes wrong between nodes and controllers: races, clocks that jump, a database that is away.

Simulated nodes over real gRPC; the database is SQLite, and PostgreSQL where there is one.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack

import grpc
import pytest

from gpupool.bench import postgres
from gpupool.controller.core.node import NodeState
from gpupool.controller.core.ports import Page
from gpupool.controller.core.vgpu import Mode, State
from gpupool.controller.store import migrate
from gpupool.controller.store.sql import Settings, SqlStore
from gpupool.controller.sweeper import Keep, Sweeper
from tests.controller.api.served import node, node_token, replica, until
from tests.controller.api.test_nodes import run, state
from tests.controller.pool import Pool


def test_clients_at_two_replicas_race_for_the_last_share(pool: Pool) -> None:
    """Twelve vGPUs of 40 percent on two GPUs: four fit, whoever asks whom."""
    tenant = pool.tenant()
    names = [f"lent{number}" for number in range(12)]
    for name in names:
        pool.create(tenant, name, 40, mode=Mode.ON_DEMAND)

    async def work() -> None:
        with replica(pool) as first, replica(pool) as second:
            token = node_token(pool)
            async with AsyncExitStack() as stack:
                nodes = [
                    await stack.enter_async_context(node([target], token, name))
                    for target, name in ((first, "n1"), (second, "n2"))
                ]
                asked = [one.claim(name) for name in names for one in nodes]
                replies = await asyncio.gather(*asked)
                granted = [one for one in replies if one.outcome == one.GRANTED]
                assert len(granted) == 4
                assert len({one.vgpu.id for one in granted}) == 4
                held = sum(len(one.sessions) for one in nodes)
                assert held == 4
                for one in nodes:
                    for session in list(one.sessions):
                        one.leave(session)
                await until(lambda: states(pool) == {State.IDLE})
        pool.check()

    run(work())


def states(pool: Pool) -> set[State]:
    """Of all vGPUs."""
    return {one.state for one in pool.store.read(lambda tables: tables.vgpus.page(Page(100)))}


def test_reports_that_come_twice_late_and_in_any_order(pool: Pool) -> None:
    """A node comes and goes with its clients; every report is sent again later, in any order. What
    counts is the newest, and in the end everything adds up.
    """
    tenant = pool.tenant()
    vgpus = [pool.create(tenant, f"lent{n}", 30, mode=Mode.ON_DEMAND) for n in range(3)]
    dice = random.Random(7)  # noqa: S311  no secret

    async def work() -> None:
        with replica(pool) as target:
            async with node([target], node_token(pool)) as one:
                sent = []
                for _ in range(60):
                    if one.sessions and dice.random() < 0.5:
                        one.sessions.pop(dice.choice(list(one.sessions)))
                    else:
                        await one.claim(dice.choice(vgpus).id)
                    async with one._lock:
                        one.sequence += 1
                        sent.append(one.picture(one.sequence))
                    again = [sent[-1], *dice.choices(sent, k=3)]
                    dice.shuffle(again)
                    await asyncio.gather(*(one.call("Report", each) for each in again))
                    found = pool.store.read(lambda tables: tables.sessions.of_node(one.node_id))
                    assert {each.id for each in found} == set(one.sessions)
                    pool.check()

    run(work())


def test_a_wall_clock_that_jumps_loses_no_node(database_url: str) -> None:
    jump_ms = 0
    day_ms = 86_400_000

    def now_ms() -> int:
        return 1_800_000_000_000 + jump_ms

    pool = Pool(SqlStore(Settings(database_url), now_ms))
    sweeper = Sweeper(pool.store, lambda: pool.licence, Keep(7, 365, 24), lease_s=30)
    tenant = pool.tenant()

    async def work() -> None:
        nonlocal jump_ms
        with replica(pool) as target:
            async with node([target], node_token(pool)) as one:
                vgpu = await asyncio.to_thread(pool.create, tenant, "kept")
                for jump in (0, day_ms, -day_ms, 365 * day_ms, 0):
                    jump_ms = jump
                    lost = await asyncio.to_thread(sweeper.sweep)
                    assert lost == []
                    await asyncio.sleep(0.5)
                assert state(pool, one.node_id) is NodeState.READY
                await until(lambda: pool.vgpu(vgpu.id).state is State.READY)
        pool.check()

    try:
        run(work())
    finally:
        pool.store.close()


@pytest.fixture
def own_cluster() -> Iterator[postgres.Cluster]:
    """A PostgreSQL to be ended and started again."""
    why_not = postgres.missing()
    if why_not:
        pytest.skip(why_not)
    with postgres.cluster(durable=True) as one:  # what was answered must be there
        yield one


def test_the_database_goes_and_comes_back(own_cluster: postgres.Cluster) -> None:
    url = own_cluster.create("plane")
    store = SqlStore(Settings(url, timeout_s=1))
    migrate.upgrade(store.engine)
    pool = Pool(store)
    tenant = pool.tenant()
    lent = pool.create(tenant, "lent", 30, mode=Mode.ON_DEMAND)

    async def work() -> None:
        with replica(pool) as target:
            async with node([target], node_token(pool)) as one:
                await one.claim("lent")
                await until(lambda: pool.vgpu(lent.id).state is State.READY)
                registrations = one.registrations
                await asyncio.to_thread(own_cluster.stop, "immediate")
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await one.claim("lent")
                assert error.value.code() is grpc.StatusCode.UNAVAILABLE
                assert "database" in (error.value.details() or "")
                await asyncio.sleep(1)
                await asyncio.to_thread(own_cluster.start)
                await until(one.connected.is_set, 30)
                kept = await asyncio.to_thread(pool.create, tenant, "kept")
                await until(lambda: pool.vgpu(kept.id).state is State.READY, 30)
                assert pool.vgpu(lent.id).state is State.READY
                assert one.registrations == registrations, "nothing had to be told anew"
                for session in list(one.sessions):
                    one.leave(session)
                await until(lambda: pool.vgpu(lent.id).state is State.IDLE)
        pool.check()

    try:
        run(work())
    finally:
        store.close()


def test_claims_over_and_over_at_many_nodes_leak_nothing(pool: Pool) -> None:
    tenant = pool.tenant()
    for number in range(6):
        pool.create(tenant, f"lent{number}", 50, mode=Mode.ON_DEMAND)
    names = itertools.cycle(f"lent{number}" for number in range(6))

    async def work() -> None:
        with replica(pool) as first, replica(pool) as second:
            token = node_token(pool)
            async with AsyncExitStack() as stack:
                nodes = [
                    await stack.enter_async_context(node([first, second], token, f"n{number}"))
                    for number in range(4)
                ]

                for _ in range(3):
                    asked = [nodes[n % len(nodes)].claim(next(names)) for n in range(16)]
                    replies = await asyncio.gather(*asked)
                    assert any(one.outcome == one.GRANTED for one in replies)
                    pool.check()
                    for one in nodes:
                        for session in list(one.sessions):
                            one.leave(session)
                    await until(lambda: states(pool) == {State.IDLE})
                    pool.check()

    run(work())
