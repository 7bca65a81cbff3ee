"""Nodes over real gRPC: what they are told, what is believed, who is let in."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from gpupool.bench.simulated_node import SimulatedNode, cards, channel
from gpupool.controller.api.limiter import Limiter
from gpupool.controller.core import allocation, fleet
from gpupool.controller.core.node import NodeState
from gpupool.controller.core.token import Role
from gpupool.controller.core.vgpu import Change, Mode, State
from gpupool.wire.proto.node import node_api
from tests.controller.api.served import node, node_token, replica, until
from tests.controller.pool import Pool


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_what_is_wanted_reaches_the_node_and_comes_back_as_ready(pool: Pool) -> None:
    tenant = pool.tenant()

    async def work() -> None:
        with replica(pool) as target:
            async with node([target], node_token(pool)) as one:
                made = await asyncio.to_thread(pool.create, tenant, "trainer")
                took_s = await until(lambda: pool.vgpu(made.id).state is State.READY)
                assert took_s < 3
                told = one.vgpus[made.id]
                assert (told.name, told.tenant_name) == ("trainer", "acme")
                assert (told.compute_percent, told.memory_mib) == (25, 1000)
                assert told.gpu_uuid == "GPU-n1-0"
        pool.check()

    run(work())


def test_a_change_at_one_replica_reaches_a_node_at_another_within_a_second(pool: Pool) -> None:
    tenant = pool.tenant()

    async def work() -> None:
        with replica(pool) as target, replica(pool) as _other:
            async with node([target], node_token(pool)) as one:
                made = await asyncio.to_thread(pool.create, tenant, "trainer")
                await until(lambda: made.id in one.vgpus)
                change = Change(compute_percent=50)

                def resize() -> None:
                    vgpu = pool.vgpu(made.id)
                    pool.store.change(
                        lambda tables: allocation.resize(tables, vgpu, change, pool.licence)
                    )

                await asyncio.to_thread(resize)
                took_s = await until(lambda: one.vgpus[made.id].compute_percent == 50)
                assert took_s < 2

    run(work())


def test_a_deleted_one_is_free_when_the_node_says_so(pool: Pool) -> None:
    tenant = pool.tenant()

    async def work() -> None:
        with replica(pool) as target:
            async with node([target], node_token(pool)) as one:
                made = await asyncio.to_thread(pool.create, tenant, "trainer", 100)
                await until(lambda: made.id in one.vgpus)
                one.silent = True
                await asyncio.to_thread(pool.delete, made.id)
                await until(lambda: made.id not in one.vgpus)
                assert pool.vgpu(made.id).state is State.DELETING
                one.speak()
                await until(lambda: pool.is_gone(made.id))
                await asyncio.to_thread(pool.create, tenant, "next", 100)
        pool.check()

    run(work())


def test_a_client_gets_an_on_demand_vgpu_and_gives_it_back(pool: Pool) -> None:
    tenant = pool.tenant()
    vgpu = pool.create(tenant, "lent", 60, mode=Mode.ON_DEMAND)
    other = pool.create(tenant, "other", 60, mode=Mode.ON_DEMAND)

    async def work() -> None:
        with replica(pool) as target:
            async with node([target], node_token(pool)) as one:
                reply = await one.claim("lent")
                assert reply.outcome == reply.GRANTED
                assert reply.vgpu.gpu_uuid == "GPU-n1-0"
                await until(lambda: pool.vgpu(vgpu.id).state is State.READY)
                waits = await one.claim(other.id)
                assert waits.outcome == waits.WAIT
                assert "60 %" in waits.text
                missing = await one.claim("nobodys")
                assert missing.outcome == missing.REFUSED
                one.leave("s1")
                await until(lambda: pool.vgpu(vgpu.id).state is State.IDLE)
                granted = await one.claim(other.id)
                assert granted.outcome == granted.GRANTED
        pool.check()

    run(work())


def test_names_of_two_tenants_are_told_apart(pool: Pool) -> None:
    first, second = pool.tenant("acme"), pool.tenant("umbra")
    pool.create(first, "same", mode=Mode.ON_DEMAND)
    theirs = pool.create(second, "same", mode=Mode.ON_DEMAND)

    async def work() -> None:
        with replica(pool) as target:
            async with node([target], node_token(pool)) as one:
                unclear = await one.claim("same")
                assert unclear.outcome == unclear.REFUSED
                assert "2 tenants" in unclear.text
                granted = await one.claim("same", "umbra")
                assert granted.vgpu.id == theirs.id
                foreign = await one.claim(theirs.id, "acme")
                assert foreign.outcome == foreign.REFUSED

    run(work())


def test_repeated_and_late_reports_change_nothing(pool: Pool) -> None:
    tenant = pool.tenant()

    async def work() -> None:
        with replica(pool) as target:
            async with node([target], node_token(pool)) as one:
                made = await asyncio.to_thread(pool.create, tenant, "trainer")
                await until(lambda: pool.vgpu(made.id).state is State.READY)
                old = one.picture(one.sequence)
                before = one.picture(max(1, one.sequence - 1))
                await asyncio.to_thread(pool.delete, made.id)
                await until(lambda: pool.is_gone(made.id))
                for stale in (old, before, old):
                    reply = await one.call("Report", stale)
                    assert (reply.accepted, reply.known) == (False, True)
                assert pool.is_gone(made.id)

    run(work())


def test_a_node_that_was_lost_comes_back_with_its_client(pool: Pool) -> None:
    tenant = pool.tenant()
    vgpu = pool.create(tenant, "lent", 60, mode=Mode.ON_DEMAND)

    async def work() -> None:
        with replica(pool) as target:
            async with node([target], node_token(pool)) as one:
                await one.claim("lent")
                await until(lambda: pool.vgpu(vgpu.id).state is State.READY)
                one.silent = True
                await asyncio.sleep(0.5)
                lose(pool, one.node_id)
                assert pool.vgpu(vgpu.id).state is State.IDLE
                one.speak()
                await until(lambda: pool.vgpu(vgpu.id).state is State.READY)
                assert pool.vgpu(vgpu.id).node_name == "n1"
        pool.check()

    run(work())


def test_a_vgpu_that_was_placed_elsewhere_is_not_the_lost_nodes_again(pool: Pool) -> None:
    tenant = pool.tenant()
    vgpu = pool.create(tenant, "lent", 60, mode=Mode.ON_DEMAND)

    async def work() -> None:
        with replica(pool) as target:
            token = node_token(pool)
            async with node([target], token) as one, node([target], token, "n2") as two:
                await one.claim("lent")
                await until(lambda: pool.vgpu(vgpu.id).state is State.READY)
                busy = await two.claim("lent")
                assert busy.outcome == busy.WAIT
                assert "n1" in busy.text
                one.silent = True
                await asyncio.sleep(0.5)
                lose(pool, one.node_id)
                granted = await two.claim("lent")
                assert granted.outcome == granted.GRANTED
                one.speak()
                await until(lambda: state(pool, one.node_id) is NodeState.READY)
                assert pool.vgpu(vgpu.id).node_name == "n2"
        pool.check()

    run(work())


def lose(pool: Pool, node_id: str) -> None:
    beat = pool.store.read(lambda tables: tables.nodes.beats())[node_id]
    assert pool.store.change(lambda tables: fleet.lose(tables, node_id, beat))


def state(pool: Pool, node_id: str) -> NodeState | None:
    found = pool.store.read(lambda tables: tables.nodes.get(node_id))
    return found.state if found else None


async def come(target: str, token: str, name: str = "n1") -> grpc.StatusCode:
    """What a node that registers is told."""
    connection = channel(target)
    one = SimulatedNode(node_api(), name, cards(name, 1), token)
    one._channel = connection
    try:
        await one.register()
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        await connection.close()
    return grpc.StatusCode.OK


def test_who_is_let_in(pool: Pool) -> None:
    pool.tenant()

    async def work() -> None:
        with replica(pool) as target:
            codes = grpc.StatusCode
            assert await come(target, "") is codes.UNAUTHENTICATED
            assert await come(target, "gpupool_nonsense") is codes.UNAUTHENTICATED
            assert await come(target, pool.token(Role.ADMIN)) is codes.PERMISSION_DENIED
            mine = node_token(pool, "n1")
            assert await come(target, mine, "n2") is codes.PERMISSION_DENIED
            assert await come(target, mine, "n1") is codes.OK
            assert await come(target, mine, "No Name!") is codes.PERMISSION_DENIED
            anywhere = node_token(pool)
            assert await come(target, anywhere, "Not A Name") is codes.INVALID_ARGUMENT

    run(work())


def test_whoever_guesses_tokens_is_slowed_down_and_nodes_are_not(pool: Pool) -> None:
    """From one address, as behind a balancer."""

    async def work() -> None:
        codes = grpc.StatusCode
        with replica(pool, failures=Limiter(0.001, 3, time.monotonic)) as target:
            known, fresh = node_token(pool, "n1"), node_token(pool, "n2")
            assert await come(target, known) is codes.OK
            guesses = [await come(target, f"gpupool_guess{number}") for number in range(5)]
            assert guesses == [codes.UNAUTHENTICATED] * 3 + [codes.RESOURCE_EXHAUSTED] * 2
            assert await come(target, known) is codes.OK
            assert await come(target, fresh, "n2") is codes.RESOURCE_EXHAUSTED

    run(work())


def test_a_node_speaks_for_itself_only(pool: Pool) -> None:
    async def work() -> None:
        with replica(pool) as target:
            first, second = node_token(pool, "n1"), node_token(pool, "n2")
            async with node([target], first) as one, node([target], second, "n2") as two:
                foreign = two.picture(1000)
                foreign.node_id, foreign.incarnation = one.node_id, one.incarnation
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await two.call("Report", foreign)
                assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED

    run(work())


def test_nonsense_is_refused(pool: Pool) -> None:
    async def work() -> None:
        with replica(pool) as target:
            async with node([target], node_token(pool)) as one:
                api = one.api
                bad = [
                    api.GpuReport(uuid="GPU-n1-0", pool=9),
                    api.GpuReport(uuid="GPU-n1-0\0", pool=1),
                    api.GpuReport(uuid="GPU-n1-0", pool=1, local_compute_percent=101),
                    api.GpuReport(uuid="G" * 65, pool=1),
                ]
                for gpu in bad:
                    request = one.picture(one.sequence + 100)
                    del request.gpus[:]
                    request.gpus.append(gpu)
                    with pytest.raises(grpc.aio.AioRpcError) as error:
                        await one.call("Report", request)
                    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(work())


def test_a_claim_of_an_earlier_incarnation_does_not_outlive_it(pool: Pool) -> None:
    tenant = pool.tenant()
    vgpu = pool.create(tenant, "lent", 60, mode=Mode.ON_DEMAND)

    async def work() -> None:
        with replica(pool) as target:
            async with node([target], node_token(pool)) as one:
                one.sequence = 57
                await one.claim("lent")
                one.sessions.clear()  # the client is gone, and hostd with what it knew of it
                await one.register()
                one.generation = pool.vgpu(vgpu.id).generation
                await one.report()
                assert pool.vgpu(vgpu.id).state is State.IDLE
        pool.check()

    run(work())
