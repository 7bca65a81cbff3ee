"""Arbiters are started where somebody has a share, found again, and started again when they die."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gpupool.hostd.adapters import native_files
from gpupool.hostd.adapters.arbiter_process import ArbiterProcesses
from gpupool.hostd.adapters.vgpu_files import VgpuFiles
from gpupool.hostd.adapters.worker_process import start_ticks
from gpupool.hostd.core.ports import SessionRow, WorkerProcess
from gpupool.hostd.core.vgpu import Quota, Seat, Vgpu

GPU = "GPU-1"
WORDS = ["--idle-s", "1"]


async def until(condition: Callable[[], object]) -> None:
    """Waits, with a bound."""
    for _ in range(400):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("waited for 20 s")


def add_session(pages: VgpuFiles, percent: int) -> None:
    """A session on the GPU, whose worker is this process."""
    vgpu = Vgpu(7, Quota(compute_percent=percent))
    pages.write_vgpu(GPU, 0, vgpu)
    pages.write_account(vgpu.id, 0, 1)
    pages.close(pages.open(1, Seat(GPU, vgpu.id, 0, 0, 0)))
    me = WorkerProcess(os.getpid(), start_ticks(os.getpid()) or 0)
    pages.write_session(GPU, 0, SessionRow(1, 0, me))


def make(folder: Path, pages: VgpuFiles, words: list[str] = WORDS) -> ArbiterProcesses:
    program = native_files.locate().arbiter
    if program is None:
        pytest.skip("gpupool-arbiter is not built: run ./run build")
    arbiters = ArbiterProcesses(program, folder, pages.has_shares, seccomp=True, log_words=words)
    pages.on_change = arbiters.look
    return arbiters


def run(test: Callable[[VgpuFiles, ArbiterProcesses], Awaitable[None]], folder: Path) -> None:
    """Runs a test; no arbiter is left after it."""

    async def body() -> None:
        pages = VgpuFiles(folder)
        arbiters = make(folder, pages)
        try:
            await test(pages, arbiters)
        finally:
            arbiters.stop()
            if pid := arbiters.pid(GPU):
                os.kill(pid, signal.SIGKILL)
                await until(lambda: not arbiters.pid(GPU))

    asyncio.run(body())


def test_none_where_nobody_has_a_share(tmp_path: Path) -> None:
    async def body(pages: VgpuFiles, arbiters: ArbiterProcesses) -> None:
        add_session(pages, 0)
        await asyncio.sleep(0.2)
        assert arbiters.pid(GPU) == 0

    run(body, tmp_path)


def test_started_with_the_first_share_and_ends_after_the_last_session(tmp_path: Path) -> None:
    async def body(pages: VgpuFiles, arbiters: ArbiterProcesses) -> None:
        add_session(pages, 25)
        pid = arbiters.pid(GPU)
        assert pid
        file = tmp_path / "gpus" / GPU / "arbiter.pid"
        await until(lambda: file.exists() and file.read_text() == f"{pid}\n")
        pages.write_session(GPU, 0, None)
        await until(lambda: not arbiters.pid(GPU))

    run(body, tmp_path)


def test_one_that_dies_is_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def body(pages: VgpuFiles, arbiters: ArbiterProcesses) -> None:
        add_session(pages, 25)
        first = arbiters.pid(GPU)
        os.kill(first, signal.SIGKILL)
        await until(lambda: arbiters.pid(GPU) not in (0, first))

    run(body, tmp_path)
    assert "arbiter ended" in caplog.text


def test_a_later_hostd_finds_the_one_that_is_there(tmp_path: Path) -> None:
    async def body(pages: VgpuFiles, arbiters: ArbiterProcesses) -> None:
        add_session(pages, 25)
        pid = arbiters.pid(GPU)
        file = tmp_path / "gpus" / GPU / "arbiter.pid"
        await until(lambda: file.exists() and file.read_text() == f"{pid}\n")
        later = make(tmp_path, VgpuFiles(tmp_path))
        later.look_at_all()
        assert later.pid(GPU) == pid
        later.stop()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not later.pid(GPU))

    run(body, tmp_path)


def test_two_for_one_gpu_cannot_be(tmp_path: Path) -> None:
    async def body(pages: VgpuFiles, arbiters: ArbiterProcesses) -> None:
        add_session(pages, 25)
        pid = arbiters.pid(GPU)
        file = tmp_path / "gpus" / GPU / "arbiter.pid"
        await until(lambda: file.exists() and file.read_text() == f"{pid}\n")
        program = str(native_files.locate().arbiter)
        second = await asyncio.create_subprocess_exec(program, "--folder", str(file.parent), *WORDS)
        assert await asyncio.wait_for(second.wait(), 20) == 10

    run(body, tmp_path)


def test_it_ends_when_its_gpu_leaves_the_pool(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    async def body(pages: VgpuFiles, arbiters: ArbiterProcesses) -> None:
        assert arbiters.release(GPU)  # there is none
        patient = make(tmp_path, pages, ["--idle-s", "600"])  # its arbiter does not leave by itself
        add_session(pages, 25)
        first = patient.pid(GPU)
        file = tmp_path / "gpus" / GPU / "arbiter.pid"
        await until(lambda: file.exists() and file.read_text() == f"{first}\n")
        assert not patient.release(GPU)  # somebody has a share: it stays
        await asyncio.sleep(0.3)
        assert patient.pid(GPU) == first
        pages.write_session(GPU, 0, None)
        await until(lambda: patient.release(GPU))
        assert patient.pid(GPU) == 0
        patient.stop()

    run(body, tmp_path)
    assert "arbiter ended" not in caplog.text
