"""A machine for each test, where this one can have such."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.network.machine import Machine, machine, missing


@pytest.fixture(scope="session")
def possible() -> None:
    """Skips where these tests cannot run, and says why."""
    lack = missing()
    if lack:
        pytest.skip(lack)


@pytest.fixture
def own(possible: None, tmp_path: Path) -> Iterator[Machine]:  # noqa: ARG001
    """A machine with the namespaces acme and rival."""
    with machine(tmp_path, "acme", "rival") as one:
        yield one
