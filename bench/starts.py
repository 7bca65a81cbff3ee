"""From the start of a process to its first result: programs that are started anew each round.

The first start in each mode is a row of its own: nothing of the program is in hostd's caches then.
Its files are in the page cache already, for they have been read once before. The starts after it
are interleaved pairs like those of every other row.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpupool.bench.modes import NATIVE
from gpupool.bench.results import Row, Run, Sample
from gpupool.bench.workloads.base import START, Result, Setting

_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Program:
    """Its first line of output is its result."""

    name: str
    needs: str
    text: str
    warm_up: str  # reads the files that it needs from disk, without a GPU


_DRIVER = """
from gpupool.bench.workloads import launch
from gpupool.bench.workloads.base import Setting
print(launch.one_thread(Setting(small=True)).result().digest, flush=True)
"""
_TORCH = """
import torch
print(float((torch.zeros(1).cuda() + 1).item()), flush=True)
"""
PROGRAMS = (
    Program("start_driver", "", _DRIVER, "import gpupool.bench.workloads.launch"),
    Program("start_torch", "torch", _TORCH, "import torch"),
)
FIRST, SECOND, TO_EXIT = "first", "second", "second_to_exit"
# Where programs are started: each start takes seconds.
MODES = (NATIVE, "shm", "tcp", "tls")


class Starts:
    """Starts programs and fills their rows."""

    def __init__(
        self, run: Run, python: str, variables: Mapping[str, Mapping[str, str]], folder: Path
    ) -> None:
        self._run, self._python, self._folder = run, python, folder
        self._variables = {mode: variables[mode] for mode in run.modes if mode in MODES}

    def measure(self, program: Program, setting: Setting, rounds: int, until: float) -> None:
        """The rows of one program. `until`, of time.monotonic(): no round begins after it, but for
        the first three."""
        rows = {kind: Row(f"{program.name}_{kind}", START) for kind in (FIRST, SECOND, TO_EXIT)}
        # One pair is no statistic, and the way to the exit is the same start once more.
        rows[FIRST].aside = rows[TO_EXIT].aside = True
        self._run.rows += rows.values()
        if why := self._unavailable(program, setting):
            for row in rows.values():
                row.skipped = why
            return
        modes = list(self._variables)
        for number in range(rounds + 1):
            if number > 3 and time.monotonic() > until:
                rows[SECOND].note = f"{number - 1} of {rounds} rounds fitted into the time limit"
                self._run.lacks("not all rounds fitted into the time limit")
                break
            turn = number % len(modes)
            for mode in modes[turn:] + modes[:turn]:
                self._once(program, mode, number, rows)

    def _unavailable(self, program: Program, setting: Setting) -> str:
        """Why the program cannot run; empty when it can."""
        if program.needs and setting.torch_device != "cuda":
            return f"it needs a GPU, and --torch-device is {setting.torch_device}"
        done = subprocess.run(  # noqa: S603 (our own programs)
            [self._python, "-c", program.warm_up],
            env=dict(self._variables[next(iter(self._variables))]),
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
        last = done.stderr.strip().splitlines()[-1:]
        return "" if done.returncode == 0 else f"{program.needs}: {' '.join(last)}"

    def _once(self, program: Program, mode: str, number: int, rows: dict[str, Row]) -> None:
        if any(mode in row.failed for row in rows.values()):
            return
        begin = time.perf_counter()
        with (self._folder / f"start-{mode}.log").open("w+b") as log:
            process = subprocess.Popen(  # noqa: S603
                [self._python, "-c", program.text],
                env=dict(self._variables[mode]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            try:
                line = _first_line(process)
                first_s = time.perf_counter() - begin
                code, cpu_s = _end(process)
                exit_s = time.perf_counter() - begin
            except BaseException:  # the run is cut short: nothing of it stays behind
                process.kill()
                raise
            log.seek(0)
            said = log.read().decode(errors="replace").strip()[-300:]
        if code != 0 or not line:
            rows[SECOND].failed[mode] = f"exit code {code}: {said or 'it said nothing'}"
            return
        times = {FIRST: first_s} if number == 0 else {SECOND: first_s, TO_EXIT: exit_s}
        for kind, seconds in times.items():
            sample = Sample(number, 1, seconds, seconds, cpu_s, None)
            rows[kind].samples.setdefault(mode, []).append(sample)
            self._compare(rows[kind], mode, Result(digest=line))

    def _compare(self, row: Row, mode: str, result: Result) -> None:
        row.results[mode] = result
        native = row.results.get(NATIVE)
        for other, found in row.results.items():
            if native and found.digest != native.digest:
                row.different[other] = f"printed {found.digest}, native {native.digest}"


def _first_line(process: subprocess.Popen[bytes]) -> str:
    """Within the time limit; empty when there is none."""
    if process.stdout is None:
        return ""
    ready = select.select([process.stdout], [], [], _TIMEOUT_S)[0]
    return process.stdout.readline().decode().strip() if ready else ""


def _end(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Waits for its end, within the time limit; exit code and CPU time."""
    deadline = time.monotonic() + _TIMEOUT_S
    handle = os.pidfd_open(process.pid)
    try:
        if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
            process.kill()
        _, status, used = os.wait4(process.pid, 0)
    finally:
        os.close(handle)
        if process.stdout is not None:
            process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime
