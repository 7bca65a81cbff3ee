"""Transactions: one after the other; tried again where that helps, a bounded number of times."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from gpupool.bench import postgres
from gpupool.controller.core.errors import StoreError
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.token import Role
from gpupool.controller.store import migrate
from gpupool.controller.store.models import Base
from gpupool.controller.store.sql import Settings, SqlStore
from tests.controller.pool import Pool

_TIMEOUT_S = 30


def test_migrations_make_the_tables_that_the_code_expects(store: SqlStore) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_again_changes_nothing(store: SqlStore) -> None:
    assert migrate.upgrade(store.engine) == migrate.upgrade(store.engine)


def test_a_database_of_a_newer_version_is_refused(store: SqlStore) -> None:
    with store.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        connection.execute(text("UPDATE alembic_version SET version_num = 'v9999'"))
        connection.commit()
    with pytest.raises(StoreError, match="newer"):
        migrate.upgrade(store.engine)


def test_what_is_raised_undoes_everything(pool: Pool) -> None:
    tenant = pool.tenant("before")

    def work(tables: Tables) -> None:
        tables.tenants.remove(tenant)
        raise KeyError(tenant)

    with pytest.raises(KeyError):
        pool.store.change(work)
    assert pool.store.read(lambda tables: tables.tenants.get(tenant)) is not None


def test_a_tables_rules_hold_whatever_the_code_does(pool: Pool) -> None:
    """A GPU is not given out twice even if the condition of the update were lost."""
    pool.node()
    for wrong in ("compute_held_percent = 101", "memory_held_mib = memory_mib + 1"):
        with pool.store.engine.connect() as connection, pytest.raises(DBAPIError):
            connection.execute(text(f"UPDATE gpus SET {wrong}"))  # noqa: S608  from above


def test_changes_do_not_overtake_each_other(pool: Pool) -> None:
    """Numbers of events are visible in their order: who has seen 7 never finds a 6 later."""
    stop = threading.Event()
    seen: list[int] = []
    gaps: list[tuple[int, int]] = []

    def watch() -> None:
        while not stop.is_set():
            last = seen[-1] if seen else 0
            found = pool.store.read(lambda tables: tables.journal.events(0, 10_000))
            numbers = [event.number for event in found]
            late = [number for number in numbers if number <= last and number not in seen]
            gaps.extend((last, number) for number in late)
            seen.extend(number for number in numbers if number > last)

    def make(worker: int) -> None:
        for number in range(8):
            pool.node(f"n{worker}-{number}", gpus=1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run_all([partial(make, worker) for worker in range(4)])
    stop.set()
    watcher.join(_TIMEOUT_S)
    assert gaps == []


def run_all(works: Sequence[Callable[[], None]]) -> None:
    """Each in a thread; raises what the first of them raised."""
    wrong: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_TIMEOUT_S)
        assert not thread.is_alive()
    if wrong:
        raise wrong[0]


def test_conflicts_are_tried_again_a_bounded_number_of_times(cluster: postgres.Cluster) -> None:
    """Where another transaction, outside the gate, writes the same rows."""
    url = cluster.create("conflicts", "template_of_tests")
    store = SqlStore(Settings(url))
    pool = Pool(store)
    node = pool.node()
    outside = create_engine(url)
    tries = 0

    def disturbed(disturb: int) -> Callable[[Tables], int]:
        def work(tables: Tables) -> int:
            nonlocal tries
            tries += 1
            tables.nodes.get(node.id)  # takes the snapshot
            if tries <= disturb:
                with outside.begin() as other:
                    other.execute(text("UPDATE nodes SET agent_version = agent_version || 'x'"))
            return tables.nodes.bump(node.id)

        return work

    assert store.change(disturbed(2)) == 2
    assert (tries, store.retries) == (3, 2)
    tries = 0
    with pytest.raises(StoreError):
        store.change(disturbed(1000))
    assert tries == 8
    outside.dispose()
    store.close()


def test_a_database_that_goes_and_comes_back() -> None:
    """Refused while it is away, soon; as before when it is back, without a restart of ours."""
    if postgres.missing():
        pytest.skip(postgres.missing())
    with postgres.cluster(durable=True) as cluster:  # what was answered must be there
        store = SqlStore(Settings(cluster.create("away"), timeout_s=2))
        migrate.upgrade(store.engine)
        pool = Pool(store)
        tenant = pool.tenant()
        pool.node()
        cluster.stop("immediate")
        with pytest.raises(StoreError):
            pool.create(tenant, "a")
        cluster.start()
        pool.create(tenant, "a")
        pool.check()
        store.close()


def test_nobody_waits_for_a_lock_for_ever(cluster: postgres.Cluster) -> None:
    url = cluster.create("locked", "template_of_tests")
    store = SqlStore(Settings(url, timeout_s=1))
    other = create_engine(url)
    with other.connect() as connection:
        connection.execute(text("LOCK TABLE gate IN EXCLUSIVE MODE"))
        with pytest.raises(StoreError, match="too long"):
            Pool(store).tenant()
        connection.rollback()
    Pool(store).tenant()
    other.dispose()
    store.close()


def test_errors_do_not_tell_values(pool: Pool) -> None:
    """A log line with a statement's values would have digests of tokens and names of tenants."""
    with pytest.raises(DBAPIError) as caught:
        pool.token(Role.TENANT, "tenant-that-nobody-may-see")
    assert "nobody-may-see" not in str(caught.value).replace(str(caught.value.orig), "")
