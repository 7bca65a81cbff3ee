"""A hostd for each test that asks for one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ansible.conftest import target, wheelhouse  # noqa: F401 (fixtures)
from tests.fakes import native as fake_native
from tests.fakes.daemon import Daemon


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fake native files, compiled once."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing")
    return fake_native.build(tmp_path_factory.mktemp("native"))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's (107 bytes in all)."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        yield Path(name)


@pytest.fixture
def daemon(native: Path, short_path: Path) -> Iterator[Daemon]:
    """Not started yet."""
    one = Daemon(native, short_path)
    yield one
    one.clean_up()
