"""What several of these tests use."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import end_host, native_dir
from tests.e2e.control_plane import Plane


@pytest.fixture(scope="session")
def device() -> Path:
    """The stand-in for a virtual machine's vsock device: a library for the client's LD_PRELOAD."""
    return native_dir() / "lib" / "bench" / "libgpupool-bench-vsock.so"


@pytest.fixture
def plane() -> Iterator[Plane]:
    """A controller on SQLite, with the tenant acme and a token for the node n1.

    Afterwards everything has to add up.
    """
    folder = Path(tempfile.mkdtemp(prefix="gpupool-plane-"))
    folder.chmod(0o711)
    one = Plane(folder, f"sqlite:///{folder}/controller.db")
    try:
        one.replica()
        one.tenant()
        one.token("n1")
        yield one
        one.check()
    finally:
        for host in one.hosts:
            end_host(host)
        one.end()
        shutil.rmtree(folder, ignore_errors=True)
