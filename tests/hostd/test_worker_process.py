"""Real processes: told apart, watched, stopped."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpupool.hostd.adapters.worker_process import (
    SubprocessWorkers,
    cleaned_environment,
    start_ticks,
)
from gpupool.hostd.core.ports import PortError, WorkerEnd, WorkerOrder, WorkerProcess

ORDER = WorkerOrder(5, 0, None, 0, None, "tcp", 0x1000, 4096, "/lib", ("GPU-1", "GPU-2"), 50, 0)


def script(folder: Path, text: str) -> SubprocessWorkers:
    """Workers that are this shell script."""
    path = folder / "worker"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return SubprocessWorkers(path, ["--log-level", "info"])


async def end_of(workers: SubprocessWorkers, process: WorkerProcess) -> WorkerEnd:
    """Watches it to its end."""
    future: asyncio.Future[WorkerEnd] = asyncio.get_running_loop().create_future()
    assert workers.watch(process, future.set_result)
    return await asyncio.wait_for(future, 20)


async def found(workers: SubprocessWorkers, session_id: int) -> WorkerProcess | None:
    """What find() says once the process has its command line.

    exec closes the starter's pipe before the kernel sets the new arguments (begin_new_exec of
    fs/exec.c comes before create_elf_tables), so for a moment /proc shows none.
    """
    deadline_s = time.monotonic() + 20
    while (process := workers.find(session_id, 0)) is None and time.monotonic() < deadline_s:
        await asyncio.sleep(0.01)
    return process


def test_exit_code(tmp_path: Path) -> None:
    async def run() -> WorkerEnd:
        workers = script(tmp_path, "exit 7")
        return await end_of(workers, workers.start(ORDER))

    assert asyncio.run(run()).exit_code == 7


@pytest.mark.parametrize(("kill", "number"), [(False, 15), (True, 9)])
def test_stop(tmp_path: Path, kill: bool, number: int) -> None:
    async def run() -> WorkerEnd:
        workers = script(tmp_path, "sleep 60 & wait")
        process = workers.start(ORDER)
        workers.stop(process, kill=kill)
        return await end_of(workers, process)

    assert asyncio.run(run()).exit_code == -number


def test_a_worker_of_another_hostd(tmp_path: Path) -> None:
    async def run() -> WorkerEnd:
        process = script(tmp_path, "read x < /dev/zero").start(ORDER)
        # Not written again: the shell may not have read it yet.
        successor = SubprocessWorkers(tmp_path / "worker", ["--log-level", "info"])
        assert await found(successor, 5) == process
        assert successor.find(6, 0) is None
        watching = asyncio.get_running_loop().create_task(end_of(successor, process))
        await asyncio.sleep(0)
        successor.stop(process, kill=True)
        return await watching

    assert asyncio.run(run()).exit_code is None


def test_a_reused_pid_is_neither_watched_nor_stopped(tmp_path: Path) -> None:
    async def run() -> None:
        workers = script(tmp_path, "exit 0")
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            ticks = start_ticks(other.pid)
            assert ticks is not None
            stale = WorkerProcess(other.pid, ticks - 1)
            assert not workers.watch(stale, lambda _: None)
            workers.stop(stale, kill=True)
            assert other.poll() is None
            other.communicate(b"\n", timeout=10)
            assert other.returncode == 0
        assert not workers.watch(stale, lambda _: None)
        workers.stop(stale, kill=True)

    asyncio.run(run())


def test_a_program_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="No such file"):
        SubprocessWorkers(tmp_path / "none", ["--log-level", "info"]).start(ORDER)
    with pytest.raises(PortError, match="not built or not installed"):
        SubprocessWorkers(None, ["--log-level", "info"]).start(ORDER)


def test_start_time_of_a_zombie_and_of_nobody() -> None:
    assert start_ticks(os.getpid()) is not None
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(child.pid) is None
    child.wait()
    assert start_ticks(child.pid) is None


def test_a_cleaned_environment() -> None:
    given = {
        "LD_LIBRARY_PATH": "/x",
        "LD_PRELOAD": "/y",
        "CUDA_VISIBLE_DEVICES": "",
        "HOME": "/root",
        "GPUPOOL_SOFTGPU_DEVICES": "2",
        "GPUPOOL_TOKEN_FILE": "/t",
    }
    cleaned = cleaned_environment(given)
    assert set(cleaned) == {"PATH", "HOME", "GPUPOOL_SOFTGPU_DEVICES", "CUDA_CACHE_DISABLE"}
    assert cleaned["PATH"].startswith("/usr/local/sbin:")
