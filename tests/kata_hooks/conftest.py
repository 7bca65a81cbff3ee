"""A stand-in hostd for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import hooks
from tests.fakes.admin_socket import AdminSocket


@pytest.fixture
def hostd() -> Iterator[AdminSocket]:
    """It admits everything until it is told otherwise."""
    with hooks.admin_socket() as one:
        yield one
