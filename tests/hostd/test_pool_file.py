"""The file of the pools: written whole, read back, and never guessed at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpupool.hostd.adapters.pool_file import PoolFileStore
from gpupool.hostd.core.operation import Operation, OperationState
from gpupool.hostd.core.pool import PciFunction, PoolFile, PoolRecord, PoolState
from gpupool.hostd.core.ports import PortError

FUNCTIONS = (PciFunction("0000:1b:00.0", "nvidia"), PciFunction("0000:1b:00.1", "", "x"))
RECORD = PoolRecord("GPU-1", "H100", 81559, "nvidia", "0000:1b:00.0").moved(
    PoolState.DRAINING, operation=3, functions=FUNCTIONS
)
STEPPING = RECORD.moved(PoolState.TO_NATIVE)
OPERATION = Operation(
    3, "gpu-pool", "GPU-1", "native", OperationState.RUNNING, "x", 5, "2026-01-02T03:04:05Z"
)
CONTENT = PoolFile().holding((STEPPING,), (OPERATION,))


def test_nothing_at_first(tmp_path: Path) -> None:
    assert PoolFileStore(tmp_path).load() == PoolFile()


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    store = PoolFileStore(tmp_path)
    store.save(PoolFile())
    store.save(CONTENT)
    assert PoolFileStore(tmp_path).load() == CONTENT
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["version"] == 1


def test_a_save_that_a_crash_cut_off_does_not_count(tmp_path: Path) -> None:
    store = PoolFileStore(tmp_path)
    store.save(CONTENT)
    (tmp_path / "pools.new").write_text('{"version": 1, "gp')
    assert store.load() == CONTENT


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2}', '{"version": 1}', "\xff"])
def test_what_cannot_be_read_is_an_error_that_helps(tmp_path: Path, text: str) -> None:
    (tmp_path / "pools.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(PortError, match="which GPUs were given out whole"):
        PoolFileStore(tmp_path).load()


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="cannot write"):
        PoolFileStore(tmp_path / "gone").save(CONTENT)
    (tmp_path / "pools.json").mkdir()
    with pytest.raises(PortError, match="Is a directory"):
        PoolFileStore(tmp_path).load()
