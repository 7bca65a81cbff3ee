"""`gpupool bench` and `./run bench`: the same work natively and forwarded, in one run."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import signal
import time
from pathlib import Path

from gpupool.bench import environment, load, report, shares
from gpupool.bench.host import HostError, no_tls
from gpupool.bench.modes import MODES
from gpupool.bench.results import Run
from gpupool.bench.runner import Plan, Runner, tell
from gpupool.bench.stage import staged
from gpupool.bench.starts import PROGRAMS, Program, Starts
from gpupool.bench.workloads import everything
from gpupool.bench.workloads.base import START, Setting, Workload

DESCRIPTION = """\
Times workloads natively and through gpupool: one process for each mode lives through the run, and
for each workload they take turns within seconds. Results are compared with native's; a difference
is a failure. Prints a Markdown report. Starts a hostd of its own.

With --shares it times something else: how well compute shares are kept between clients of one GPU,
and what they cost (docs/shares.md says what is promised).

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
  gpupool bench --read a.json --read b.json --out report
  gpupool bench --shares --window-s 4 --policies hard    four minutes on a GPU
"""
_CUT_SHORT = 3
_NO_LIMIT_S = 1e9
_SHARE_OF_STARTS = 0.25  # of the time limit, for programs that are started anew each round


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
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the bench's hostd, in TOML, e.g. ahead.context=true",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="report.json, report.md, plots")
    parser.add_argument("--json", type=Path, metavar="FILE", help="only the JSON")
    parser.add_argument(
        "--read",
        action="append",
        type=Path,
        metavar="FILE",
        help="measure nothing: put reports (JSON) of before together, judge and draw them",
    )
    parser.add_argument("--commit", default="", metavar="ID", help="for a checkout without git")
    parser.add_argument("--list", action="store_true", help="name the workloads and modes")
    parser.add_argument(
        "--shares",
        action="store_true",
        help="how well compute shares are kept; of the options above only --gpu and --json go with "
        "it, and those below only with it",
    )
    shares.add_arguments(parser)
    # Runs PyTorch's workloads without a GPU in every mode: a check of their own code.
    parser.add_argument("--torch-device", default="cuda", help=argparse.SUPPRESS)


def main(arguments: argparse.Namespace) -> int:
    """The exit code."""
    if arguments.shares:
        return _shares(arguments)
    if arguments.list:
        return _list()
    if arguments.read:
        return _again(arguments)
    try:
        modes, (programs, workloads) = _modes(arguments.modes), _chosen(arguments)
    except ValueError as error:
        tell(str(error))
        return 2
    run = Run(modes)
    run.environment = environment.facts(arguments.commit)
    signal.signal(signal.SIGTERM, _cut)
    signal.signal(signal.SIGINT, _cut)
    try:
        _measure(run, programs, workloads, arguments)
    except CutShortError as error:
        run.lacks(str(error))
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


def _shares(arguments: argparse.Namespace) -> int:
    left = ("names", "needs", "set", "out", "read", "list", "small", "time_limit")
    if said := [name for name in left if getattr(arguments, name)]:
        tell(f"--shares does not go with {', '.join(said)}; with it go --gpu and --json")
        return 2
    try:
        return shares.run(arguments)
    except HostError as error:
        tell(str(error))
        return 1


def _again(arguments: argparse.Namespace) -> int:
    """Reports of before, put together."""
    runs = []
    for path in arguments.read:
        try:
            runs.append(load.from_json(json.loads(path.read_text())))
        except (OSError, ValueError) as error:
            tell(f"{path}: {error}")
            return 2
    run = load.together(runs)
    _write(run, arguments)
    _plot(run, arguments)
    print(report.as_markdown(run), flush=True)
    return 1 if run.failures() else 0


def _cut(number: int, _: object) -> None:
    raise CutShortError(f"cut short by {signal.Signals(number).name}")


def _list() -> int:
    for program in PROGRAMS:
        print(f"{program.name:32s} {START:20s} {program.needs or 'driver'}")
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


def _chosen(arguments: argparse.Namespace) -> tuple[list[Program], list[Workload]]:
    """What was asked for. Raises ValueError."""
    kinds = arguments.needs.split(",") if arguments.needs else []
    names = [each.name for each in PROGRAMS] + list(everything())
    for pattern in arguments.names:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"no workload is called {pattern}; see --list")

    def wanted(each: Program | Workload) -> bool:
        named = not arguments.names or any(fnmatch.fnmatch(each.name, n) for n in arguments.names)
        return named and (not kinds or (each.needs or "driver") in kinds)

    programs = [each for each in PROGRAMS if wanted(each)]
    workloads = [each for each in everything().values() if wanted(each)]
    if not programs and not workloads:
        raise ValueError("no workload is left to run; see --list")
    return programs, workloads


def _measure(
    run: Run, programs: list[Program], workloads: list[Workload], arguments: argparse.Namespace
) -> None:
    gpu = arguments.gpu
    if gpu == "auto":
        gpu = "nvidia" if Path("/dev/nvidiactl").exists() else "software"
    run.environment["gpu_choice"] = gpu
    run.environment["hostd_settings"] = ", ".join(arguments.set)
    if arguments.small:
        run.environment["sizes"] = "small; names of rows tell the full ones"
    begin = time.monotonic()
    limit_s = arguments.time_limit or _NO_LIMIT_S
    setting = Setting(arguments.small, arguments.torch_device)
    run.incomplete = ""
    if "tls" in run.modes and (why := no_tls()):
        # Without it hostd would not start, for none of the modes.
        run.modes.remove("tls")
        run.lacks(f"mode tls is left out: {why}")
    with staged(run, gpu, arguments.python, setting, arguments.set) as stage:
        starts = Starts(run, arguments.python, stage.variables, stage.folder)
        for number, program in enumerate(programs):
            share = _SHARE_OF_STARTS if workloads else 1.0
            until = begin + limit_s * share * (number + 1) / len(programs)
            starts.measure(program, setting, arguments.rounds, until)
        wants_torch = any(each.needs == "torch" for each in workloads)
        plan = Plan(arguments.rounds, arguments.seconds, begin + limit_s, wants_torch)
        runner = Runner(run, plan, stage, lambda: _write(run, arguments))
        try:
            if workloads:
                runner.prepare()
            for number, workload in enumerate(workloads):
                runner.workload(workload, len(workloads) - number)
            if workloads:
                runner.idle()
            runner.end()
        finally:
            runner.kill()


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
