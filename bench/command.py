"""`gpupool bench` and `./run bench`: the same work natively and forwarded, in one run."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gpupool.bench import environment, report
from gpupool.bench.delay import delayed
from gpupool.bench.host import Host, HostError, helper, hostd, library_path
from gpupool.bench.link import Link
from gpupool.bench.modes import MODES, NATIVE
from gpupool.bench.results import Run
from gpupool.bench.runner import Plan, Runner, agent_command, agent_environment, tell
from gpupool.bench.workloads import everything
from gpupool.bench.workloads.base import Workload
from gpupool.hostd.adapters import native_files

DESCRIPTION = """\
Times workloads natively and through gpupool: one process for each mode lives through the run, and
for each workload they take turns within seconds. Results are compared with native's; a difference
is a failure. Prints a Markdown report. Starts a hostd of its own.

Driver-level workloads need nothing but a GPU (or the software GPU); those of PyTorch, JAX and CuPy
are skipped where --python has no such package.
"""
EPILOG = """\
exit codes: 0 everything asked for was measured; 1 something failed, or a result was wrong;
3 it was cut short (a signal, --time-limit): what there is has been written

examples:
  gpupool bench --out report                       everything, in every mode
  gpupool bench --modes native,shm 'launch*' item  some workloads
  gpupool bench --small --gpu software             a functional check without a GPU
"""
_CUT_SHORT = 3
_NO_LIMIT_S = 1e9


class CutShortError(Exception):
    """SIGTERM or SIGINT."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("names", nargs="*", help="only these workloads (shell patterns; --list)")
    parser.add_argument(
        "--modes", default=",".join(MODES), metavar="M,...", help="default: %(default)s"
    )
    parser.add_argument("--needs", metavar="F,...", help="only of: driver, torch, jax, cupy")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.15,
        metavar="S",
        help="how long one round of one mode takes; default: %(default)s",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        metavar="S",
        help="of the whole run: as many rounds as fit, and the report says so",
    )
    parser.add_argument("--gpu", choices=("auto", "nvidia", "software"), default="auto")
    parser.add_argument("--small", action="store_true", help="small sizes, for the software GPU")
    parser.add_argument(
        "--python", default="python3", help="runs the workloads; default: %(default)s"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="report.json, report.md, plots")
    parser.add_argument("--json", type=Path, metavar="FILE", help="only the JSON")
    parser.add_argument("--commit", default="", metavar="ID", help="for a checkout without git")
    parser.add_argument("--list", action="store_true", help="name the workloads and modes")
    # Runs PyTorch's workloads without a GPU in every mode: a check of their own code.
    parser.add_argument("--torch-device", default="cuda", help=argparse.SUPPRESS)


def main(arguments: argparse.Namespace) -> int:
    """The exit code."""
    if arguments.list:
        return _list()
    try:
        modes, chosen = _modes(arguments.modes), _workloads(arguments.names, arguments.needs)
    except ValueError as error:
        tell(str(error))
        return 2
    run = Run(modes)
    run.environment = environment.facts(arguments.commit)
    signal.signal(signal.SIGTERM, _cut)
    signal.signal(signal.SIGINT, _cut)
    try:
        _measure(run, chosen, arguments)
    except CutShortError as error:
        run.incomplete = str(error)
    except HostError as error:
        run.problems.append(str(error))
    finally:
        # Nothing may keep what was measured from being written.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        run.environment["load_at_end"] = os.getloadavg()[0]
        _write(run, arguments)
        _plot(run, arguments)
    print(report.as_markdown(run), flush=True)
    for line in run.failures():
        tell(f"FAILED: {line}")
    if run.failures():
        return 1
    return _CUT_SHORT if run.incomplete else 0


def _cut(number: int, _: object) -> None:
    raise CutShortError(f"cut short by {signal.Signals(number).name}")


def _list() -> int:
    for workload in everything().values():
        print(f"{workload.name:32s} {workload.row_class:20s} {workload.needs or 'driver'}")
    for mode in MODES.values():
        print(f"mode {mode.name:27s} {mode.what}")
    return 0


def _modes(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in MODES]:
        raise ValueError(f"unknown mode {', '.join(unknown)}; there are {', '.join(MODES)}")
    return names


def _workloads(patterns: list[str], needs: str | None) -> list[Workload]:
    known = everything()
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise ValueError(f"no workload is called {pattern}; see --list")
    kinds = needs.split(",") if needs else []
    chosen = [
        each
        for each in known.values()
        if (not patterns or any(fnmatch.fnmatch(each.name, one) for one in patterns))
        and (not kinds or (each.needs or "driver") in kinds)
    ]
    if not chosen:
        raise ValueError("no workload is left to run; see --list")
    return chosen


def _measure(run: Run, chosen: list[Workload], arguments: argparse.Namespace) -> None:
    gpu = arguments.gpu
    if gpu == "auto":
        gpu = "nvidia" if Path("/dev/nvidiactl").exists() else "software"
    run.environment["gpu_choice"] = gpu
    limit_s = arguments.time_limit or _NO_LIMIT_S
    plan = Plan(
        arguments.rounds,
        arguments.seconds,
        time.monotonic() + limit_s,
        any(each.needs == "torch" for each in chosen),
    )
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpupool-bench-")))
        host = stack.enter_context(hostd(folder / "host", gpu))
        start = stack.enter_context(_starter(run, folder, host, gpu, arguments))
        runner = Runner(run, plan, start, host.worker_pid, lambda: _write(run, arguments))
        try:
            runner.prepare()
            run.incomplete = ""
            for number, workload in enumerate(chosen):
                runner.workload(workload, len(chosen) - number)
            runner.idle()
            runner.end()
        finally:
            runner.kill()


@contextlib.contextmanager
def _starter(
    run: Run, folder: Path, host: Host, gpu: str, arguments: argparse.Namespace
) -> Iterator[Callable[[str], Link]]:
    """What starts the process of a mode."""
    with contextlib.ExitStack() as stack:
        variables: dict[str, dict[str, str]] = {}
        for name in run.modes:
            mode = MODES[name]
            if name == NATIVE:
                variables[name] = _native(folder, gpu)
                continue
            port = 0
            if mode.round_trip_us:
                through = stack.enter_context(delayed(host.tcp_port, mode.round_trip_us))
                run.delays[name] = through
                port = through.port
            variables[name] = host.environment(mode.transport, port)
        loops = helper("libgpupool-bench-loops.so")
        command = agent_command(arguments.python, arguments.small, arguments.torch_device)

        def start(name: str) -> Link:
            surroundings = agent_environment(folder, loops, variables[name])
            return Link(command, surroundings, folder / f"agent-{name}.log")

        yield start


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


def _write(run: Run, arguments: argparse.Namespace) -> None:
    """What there is so far, whole files at any moment."""
    wanted: dict[Path, str] = {}
    if arguments.json:
        wanted[arguments.json] = "json"
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        wanted |= {arguments.out / "report.json": "json", arguments.out / "report.md": "md"}
    for path, kind in wanted.items():
        text = (
            json.dumps(report.as_json(run), indent=1) if kind == "json" else report.as_markdown(run)
        )
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(text + "\n")
        fresh.replace(path)


def _plot(run: Run, arguments: argparse.Namespace) -> None:
    if not arguments.out:
        return
    from gpupool.bench import plots

    try:
        for path in plots.draw(run, arguments.out):
            tell(f"wrote {path}")
    except ImportError:
        tell("no plots: matplotlib is not installed (pip install 'gpupool[bench]')")
