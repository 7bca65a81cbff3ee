"""Many at once, on one replica and on several: nothing is given out twice."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpupool.controller.core import allocation
from gpupool.controller.core.errors import Kind, RefusedError
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.vgpu import Ask, Change, Mode, Request, Selector, Share, Strategy
from gpupool.controller.store.sql import Settings, SqlStore
from tests.controller.pool import FakeNode, Pool
from tests.controller.store.test_sql import run_all

REQUESTERS = 64
_numbers = itertools.count()


def test_64_requesters_get_exactly_what_there_is(pool: Pool) -> None:
    tenant = pool.tenant()
    pool.node(gpus=3)
    made: list[str] = []
    refused: list[Kind] = []

    def one(number: int) -> None:
        try:
            made.append(pool.create(tenant, f"v{number}", 10).id)
        except RefusedError as error:
            refused.append(error.kind)

    run_all([partial(one, number) for number in range(REQUESTERS)])
    assert len(made) == 30
    assert set(refused) == {Kind.NO_ROOM}
    pool.check()


def test_two_replicas_race_for_the_last_share(database_url: str) -> None:
    stores = [SqlStore(Settings(database_url)) for _ in range(2)]
    pools = [Pool(store) for store in stores]
    tenant = pools[0].tenant()
    for round_number in range(5):
        node = pools[0].node(f"n{round_number}")
        barrier = threading.Barrier(2)
        won: list[str] = []

        def race(
            pool: Pool, name: str, barrier: threading.Barrier = barrier, won: list[str] = won
        ) -> None:
            barrier.wait(20)
            with contextlib.suppress(allocation.NoRoomError):
                won.append(pool.create(tenant, name, 60).id)

        run_all(
            [partial(race, pool, f"v{round_number}-{index}") for index, pool in enumerate(pools)]
        )
        assert len(won) == 1
        assert pools[1].vgpu(won[0]).node_id == node.id
        pools[0].check()
    for store in stores:
        store.close()


steps = st.lists(
    st.tuples(
        st.sampled_from(["create", "claimed", "resize", "delete", "report", "release"]),
        st.integers(0, 7),
        st.integers(0, 60),
        st.integers(0, 900),
        st.sampled_from(Strategy),
    ),
    min_size=4,
    max_size=16,
)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(plans=st.lists(steps, min_size=2, max_size=4))
def test_nothing_adds_up_wrongly_whatever_is_done_at_once(
    pool: Pool, plans: list[list[tuple[str, int, int, int, Strategy]]]
) -> None:
    """Several replicas' worth of threads, each with a plan of its own, on two small GPUs."""
    number = next(_numbers)  # the database is the same for all examples
    tenant = pool.tenant(f"t-{number}")
    node = pool.node(f"n-{number}", gpus=2, memory_mib=1000)
    lock = threading.Lock()  # reports of one node come one after the other

    def follow(worker: int, plan: list[tuple[str, int, int, int, Strategy]]) -> None:
        for what, which, compute, memory, strategy in plan:
            try:
                _step(pool, node, lock, (tenant, worker, what, which, compute, memory, strategy))
            except RefusedError:
                continue  # an answer like any other

    run_all([partial(follow, worker, plan) for worker, plan in enumerate(plans)])
    pool.check()
    node.report()
    pool.check()


def _step(
    pool: Pool,
    node: FakeNode,
    lock: threading.Lock,
    step: tuple[str, int, str, int, int, int, Strategy],
) -> None:
    tenant, worker, what, which, compute, memory, strategy = step
    name = f"v{which}"
    if what == "create":
        ask = Ask(name, Share(compute, memory))
        pool.request(Request(tenant, (ask,), Selector(node=node.name), strategy))
    elif what == "claimed":
        pool.create(tenant, name, compute, memory, Mode.ON_DEMAND)
        node.claim(f"s{worker}-{which}", name, tenant)
    elif what == "release":
        node.release(f"s{worker}-{which}")
    elif what == "report":
        with lock:
            node.report()
    else:

        def change(tables: Tables) -> None:
            vgpu = tables.vgpus.by_name(tenant, name)
            if vgpu is None:
                return
            if what == "resize":
                allocation.resize(tables, vgpu, Change(compute, memory), pool.licence)
            else:
                allocation.delete(tables, vgpu)

        pool.store.change(change)


_ALLOCATE = """
import sys
from gpupool.controller.core.errors import RefusedError
from gpupool.controller.store.sql import Settings, SqlStore
from tests.controller.pool import Pool
pool = Pool(SqlStore(Settings(sys.argv[1])))
print("ready", flush=True)
for number in range(100000):
    try:
        vgpu = pool.create(sys.argv[2], f"{sys.argv[3]}-{number}", 1, 1)
        pool.delete(vgpu.id)
    except RefusedError:
        continue
"""


def test_kill_9_at_any_moment_leaves_what_adds_up(database_url: str) -> None:
    store = SqlStore(Settings(database_url))
    pool = Pool(store)
    tenant = pool.tenant()
    node = pool.node(gpus=4)
    for round_number in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", _ALLOCATE, database_url, tenant, str(round_number)],
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.2 + 0.15 * round_number)
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=20)
        child.stdout.close()
        pool.check()
    node.report()  # what was deleted holds its share until its node says that it is gone
    pool.create(tenant, "after")
    pool.check()
    store.close()
