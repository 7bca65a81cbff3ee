"""A stand-in for hostd."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.admin_socket import AdminSocket


@pytest.fixture
def hostd() -> Iterator[AdminSocket]:
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        one = AdminSocket(Path(name) / "admin.sock")
        yield one
        one.close()
