"""Kernel and guests for tests/vm. Each test is marked `vm`: `-m 'not vm'` goes without."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import initramfs, kernel, machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is in this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("vm")
            item.add_marker(pytest.mark.timeout(600))  # beside other work on two cores


@pytest.fixture(scope="session")
def guest_kernel() -> kernel.Kernel:
    """Debian's kernel; without it, or without what boots it, the test is skipped."""
    try:
        machine.qemu()
        initramfs.busybox()
        return kernel.find()
    except kernel.MissingError as problem:
        pytest.skip(str(problem))


@pytest.fixture
def folder() -> Iterator[Path]:
    """For sockets and logs. Not tmp_path: a unix socket's path is at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="gpupool-vm-") as name:
        yield Path(name)
