"""`./run bench`: the same workloads natively and through gpupool, in one run, interleaved.

Needs an NVIDIA GPU and a Python with PyTorch and torchvision (--python names it). Prints a table
of medians with the ratio to native, and with --json FILE writes every sample. Nothing is compared
with figures of another run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
MODES = ("native", "shm", "tcp")
TIMEOUT_S = 900


def command(mode: str, python: str, names: list[str], output: Path) -> list[str]:
    """The command line of one run in one mode."""
    program = [python, str(HERE / "workloads.py"), "--json", str(output), *names]
    if mode == "native":
        return program
    return [sys.executable, "-m", "gpupool.cli", "run", "--transport", mode, "--", *program]


def run_once(mode: str, python: str, names: list[str]) -> dict[str, float]:
    """One process of the workloads; its figures. A failed run is told and keeps what it had."""
    with tempfile.TemporaryDirectory(prefix="gpupool-bench-") as folder:
        output = Path(folder) / "figures.json"
        done = subprocess.run(  # noqa: S603 - our own command line
            command(mode, python, names, output),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env=dict(os.environ),
        )
        if done.returncode != 0:
            tell(f"{mode}: exit code {done.returncode}")
        if not output.exists():
            return {}
        figures: dict[str, float] = json.loads(output.read_text())
        return figures


def table(samples: dict[str, dict[str, list[float]]], modes: list[str]) -> str:
    """A Markdown table: medians, and the ratio of each mode to native."""
    names = list(dict.fromkeys(name for mode in modes for name in samples[mode]))
    header = ["workload", *modes, *[f"{mode} / native" for mode in modes if mode != "native"]]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name in names:
        medians = {m: statistics.median(samples[m][name]) for m in modes if samples[m].get(name)}
        row = [name, *[f"{medians[m]:.4f}" if m in medians else "failed" for m in modes]]
        for mode in modes:
            if mode == "native":
                continue
            native = medians.get("native", 0)
            row.append(f"{medians[mode] / native:.2f}" if native and mode in medians else "-")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def tell(text: str) -> None:
    """Progress, on stderr."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Runs every mode `--rounds` times, interleaved, and prints the table."""
    parser = argparse.ArgumentParser(
        prog="./run bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="only these workloads (see bench/workloads.py)")
    parser.add_argument("--modes", default=",".join(MODES), help="default: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=3, help="processes a mode; default: %(default)s"
    )
    parser.add_argument(
        "--python", default="python3", help="a Python with PyTorch; default: %(default)s"
    )
    parser.add_argument("--json", type=Path, help="write all samples here")
    arguments = parser.parse_args()
    modes = arguments.modes.split(",")
    if unknown := set(modes) - set(MODES):
        parser.error(f"unknown mode {', '.join(sorted(unknown))}; there are {', '.join(MODES)}")
    samples: dict[str, dict[str, list[float]]] = {mode: defaultdict(list) for mode in modes}
    # A run that is cut short still tells what it has.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for number in range(arguments.rounds):
            for mode in modes:
                tell(f"round {number + 1} of {arguments.rounds}, {mode}")
                for name, value in run_once(mode, arguments.python, arguments.names).items():
                    samples[mode][name].append(value)
                if arguments.json:
                    arguments.json.write_text(json.dumps(samples, indent=1))
    finally:
        print(table(samples, modes), flush=True)
    return 0 if all(samples[mode] for mode in modes) else 1


if __name__ == "__main__":
    sys.exit(main())
