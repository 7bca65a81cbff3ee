"""Runs fuzz targets for as long as asked: `./run fuzz [TARGET...] [--time S]`.

What a target finds interesting stays in build/fuzz/corpus/TARGET, where the next run starts;
findings go to build/fuzz/findings/TARGET. `--keep` puts the smallest set of inputs that reaches the
same code into tests/fuzz/corpus/TARGET, which tests replay.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import TARGETS, Target, missing, run_target

KEPT_BYTES = 100_000  # of one target's corpus in the repository


def keep(target: Target) -> None:
    """Replaces a target's corpus in the repository by a minimal one, the smallest inputs first."""
    target.kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        minimal = Path(name)
        run_target(target, ["-merge=1", str(minimal), str(target.working), str(target.kept)])
        for old in target.kept.iterdir():
            old.unlink()
        room = KEPT_BYTES
        for one in sorted(minimal.iterdir(), key=lambda path: path.stat().st_size):
            room -= one.stat().st_size
            if room < 0:
                break
            (target.kept / one.name).write_bytes(one.read_bytes())


def main(argv: list[str]) -> int:
    """Exit code 0, or 1 when something was found, or 69 when the targets cannot be built here."""
    parser = argparse.ArgumentParser(prog="./run fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", choices=[*TARGETS, []], help="default: all of them")
    parser.add_argument("--time", type=int, default=600, metavar="S", help="seconds a target")
    parser.add_argument("--keep", action="store_true", help="then renew tests/fuzz/corpus")
    arguments = parser.parse_args(argv)
    if reason := missing(*arguments.target):
        print(f"fuzz: {reason}", file=sys.stderr)
        return 69
    found = 0
    for name in arguments.target or TARGETS:
        target = TARGETS[name]
        target.working.mkdir(parents=True, exist_ok=True)
        target.findings.mkdir(parents=True, exist_ok=True)
        done = run_target(
            target,
            [
                f"-max_total_time={arguments.time}",
                f"-artifact_prefix={target.findings}/",
                "-print_final_stats=1",
                str(target.working),
                str(target.kept),
            ],
        )
        print(f"{name}: {done.executions} executions, exit code {done.code}")
        if done.code != 0:
            print(done.output[-6000:])
            found = 1
        elif arguments.keep:
            keep(target)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
