"""Writes to sysfs, in a process of their own."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gpupool.hostd.adapters.sysfs_write import write
from gpupool.hostd.core.ports import PortError


def test_the_text_arrives(tmp_path: Path) -> None:
    path = tmp_path / "bind"
    path.touch()
    write(path, "0000:1b:00.0")
    assert path.read_text() == "0000:1b:00.0"


def test_what_the_kernel_says_is_told(tmp_path: Path) -> None:
    with pytest.raises(PortError, match=r"cannot write 'x' to .*: No such file or directory"):
        write(tmp_path / "bind", "x")
    with pytest.raises(PortError, match="No space left on device"):
        write(Path("/dev/full"), "x")


def test_a_write_that_does_not_return_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "unbind"
    os.mkfifo(path)  # opening it waits for a reader
    begun_s = time.monotonic()
    with pytest.raises(PortError, match=r"has not returned for 0\.5 s: somebody has the card open"):
        write(path, "0000:1b:00.0", timeout_s=0.5)
    assert time.monotonic() - begun_s < 20
