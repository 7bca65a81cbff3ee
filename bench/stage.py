"""Everything that a run needs around its processes: hostd, delays, and each mode's variables."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import gpupool
from gpupool.bench.delay import delayed
from gpupool.bench.host import Host, HostError, helper, hostd, library_path
from gpupool.bench.link import Link
from gpupool.bench.modes import MODES, NATIVE
from gpupool.bench.results import Run
from gpupool.bench.workloads.base import Setting
from gpupool.hostd.adapters import native_files


@dataclass(frozen=True)
class Stage:
    """What processes are started with."""

    folder: Path
    host: Host
    python: str
    setting: Setting
    variables: dict[str, dict[str, str]]  # of each mode

    def start(self, mode: str) -> Link:
        """The long-living process of a mode."""
        command = [self.python, "-m", "gpupool.bench.agent"]
        command += ["--torch-device", self.setting.torch_device]
        command += ["--small"] if self.setting.small else []
        return Link(command, self.variables[mode], self.folder / f"agent-{mode}.log")


@contextlib.contextmanager
def staged(
    run: Run, gpu: str, python: str, setting: Setting, hostd_settings: Sequence[str]
) -> Iterator[Stage]:
    """Sets it up, and away again. Raises HostError."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpupool-bench-")))
        transports = sorted({MODES[name].transport for name in run.modes} - {""})
        host = stack.enter_context(hostd(folder / "host", gpu, hostd_settings, transports))
        common = _common(folder)
        variables: dict[str, dict[str, str]] = {}
        for name in run.modes:
            mode = MODES[name]
            if name == NATIVE:
                variables[name] = common | _native(folder, gpu)
                continue
            port = 0
            if mode.round_trip_us:
                run.delays[name] = stack.enter_context(
                    delayed(host.ports[mode.transport], mode.round_trip_us)
                )
                port = run.delays[name].port
            variables[name] = common | host.environment(mode.transport, port)
        yield Stage(folder, host, python, setting, variables)


def _common(folder: Path) -> dict[str, str]:
    """The runner's variables. Its processes find our package without what lies beside it: other
    people's Python has packages of its own."""
    link = folder / "python" / "gpupool"
    link.parent.mkdir()
    link.symlink_to(Path(gpupool.__file__).absolute().parent)
    loops = helper("libgpupool-bench-loops.so")
    return {**os.environ, "PYTHONPATH": str(link.parent), "GPUPOOL_BENCH_LOOPS": str(loops)}


def _native(folder: Path, gpu: str) -> dict[str, str]:
    """The GPU's own driver. The software GPU's library is put where a program looks for libcuda."""
    if gpu != "software":
        return {}
    library = native_files.locate().software_gpu
    if library is None:
        raise HostError("libgpupool-softgpu.so was not found; run `gpupool doctor`")
    place = folder / "native"
    place.mkdir()
    (place / "libcuda.so.1").symlink_to(library)
    return {"LD_LIBRARY_PATH": library_path(place)}
