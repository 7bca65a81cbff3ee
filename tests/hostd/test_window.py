"""Windows are sealed."""

from __future__ import annotations

import fcntl
import os

import pytest

from gpupool.hostd.adapters.window import MemfdWindows


def test_size_seals_and_no_inheritance() -> None:
    windows = MemfdWindows()
    fd = windows.create(64 << 20)
    assert os.fstat(fd).st_size == 64 << 20
    assert os.fstat(fd).st_blocks == 0  # sparse
    assert not os.get_inheritable(fd)
    for size in (0, 128 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    os.pwrite(fd, b"x", 0)  # but it can be written
    windows.close(fd)
