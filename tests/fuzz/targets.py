"""The fuzz targets and how each is started."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.tree import ROOT

BUILD = ROOT / "build" / "fuzz"
LIMITS = [
    "-timeout=60",  # seconds: a hang, also on a machine that is busy
    "-rss_limit_mb=3000",
    "-malloc_limit_mb=1200",  # of one allocation: a handle table reaches some hundred MiB
    "-close_fd_mask=3",  # what the software GPU says of images
    "-entropic=0",  # its book-keeping costs more than the sessions
    "-detect_leaks=0",  # a worker ends by _exit; the driver's memory goes with it
]
UNFINISHED = -1  # executions of a run that did not get to say


@dataclass(frozen=True, slots=True)
class Target:
    """One program of tests/fuzz/CMakeLists.txt."""

    name: str
    max_bytes: int  # of one input
    about: str

    @property
    def program(self) -> Path:
        """The built program."""
        return BUILD / "tests" / "fuzz" / f"fuzz_{self.name}"

    @property
    def kept(self) -> Path:
        """The corpus in the repository."""
        return ROOT / "tests" / "fuzz" / "corpus" / self.name

    @property
    def working(self) -> Path:
        """What long runs have found interesting."""
        return BUILD / "corpus" / self.name

    @property
    def findings(self) -> Path:
        """Inputs that ended the program."""
        return BUILD / "findings" / self.name


TARGETS = {
    target.name: target
    for target in (
        Target("decoder", 2048, "every message handler, with a driver that does nothing"),
        Target("session", 4096, "whole sessions against the software GPU"),
        Target("quota", 1024, "the account of a vGPU's memory, against the software GPU"),
        Target("stream", 16384, "the worker's end of a TCP connection"),
        Target("guest", 4096, "the client's end of a TCP connection"),
        Target("image", 4096, "the measuring of code images"),
        Target("ptx", 8192, "what the software GPU reads of an image"),
        Target("vtest", 1024, "what an OpenGL client sends its renderer"),
        Target("relay", 4096, "what a host and a program send gpupool-opengl"),
        Target("rings", 2048, "the renderer's end of a slot in a VM's window"),
        Target("vsock", 2048, "a VM's vsock device, by its guest and its QEMU"),
    )
}


@dataclass(frozen=True, slots=True)
class Done:
    """How a run ended."""

    code: int
    executions: int
    output: str


def missing(*names: str) -> str:
    """Why the targets (default: all) cannot run here; empty when they can."""
    absent = [name for name in names or TARGETS if not TARGETS[name].program.exists()]
    if absent:
        return f"{', '.join(absent)} not built in {BUILD}: clang and libclang-rt-dev are needed"
    return ""


def run_target(target: Target, arguments: list[str], timeout_s: float | None = None) -> Done:
    """Runs a target with libFuzzer's arguments to its end. TimeoutExpired after `timeout_s`."""
    done = subprocess.run(
        [target.program, *LIMITS, f"-max_len={target.max_bytes}", *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout_s,
        cwd=BUILD,
        env=dict(os.environ, UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1"),
    )
    counted = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    executions = int(counted[1]) if counted else UNFINISHED
    return Done(done.returncode, executions, done.stderr)
