"""A stand-in hostd for each test that asks for one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.admin_socket import AdminSocket


@pytest.fixture
def hostd() -> Iterator[AdminSocket]:
    """It admits everything until it is told otherwise."""
    # Of a short name: a socket's has 107 bytes in all.
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as folder:
        one = AdminSocket(Path(folder) / "admin.sock")
        yield one
        one.close()
