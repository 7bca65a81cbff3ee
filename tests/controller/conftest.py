"""A controller's database, once on SQLite and once on a real PostgreSQL."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool.bench import postgres
from gpupool.controller.store import migrate
from gpupool.controller.store.sql import Settings, SqlStore
from tests.controller.pool import Pool

_numbers = itertools.count()


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Cluster]:
    """One PostgreSQL for the whole run."""
    why_not = postgres.missing()
    if why_not:
        pytest.skip(why_not)
    with postgres.cluster() as one:
        url = one.create("template_of_tests")
        store = SqlStore(Settings(url))
        migrate.upgrade(store.engine)
        store.close()
        yield one


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of the test's own, with its tables."""
    if request.param == "postgresql":
        one: postgres.Cluster = request.getfixturevalue("cluster")
        return one.create(f"test_{next(_numbers)}", "template_of_tests")
    url = f"sqlite:///{tmp_path}/controller.db"
    store = SqlStore(Settings(url))
    migrate.upgrade(store.engine)
    store.close()
    return url


@pytest.fixture
def store(database_url: str) -> Iterator[SqlStore]:
    """The store on it."""
    one = SqlStore(Settings(database_url))
    yield one
    one.close()


@pytest.fixture
def pool(store: SqlStore) -> Pool:
    """The store with short ways to fill it."""
    return Pool(store)
