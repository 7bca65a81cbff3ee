"""`gpupool controller`: runs the controller in the foreground."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DESCRIPTION = """\
Runs the controller in the foreground: it knows every node, GPU and vGPU, and places vGPUs. Meant to
be started by systemd (docs/controller.md). Needs `pip install 'gpupool[controller]'`. SIGTERM stops
it; nodes and programs go on without it.
"""
EPILOG = """\
exit codes: 0 stopped; 1 could not start (the reason is on stderr); 2 the configuration is wrong
examples:
  gpupool controller --config controller.toml --check
  gpupool controller --config controller.toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `gpupool controller`."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="default: /etc/gpupool/controller.toml"
    )
    parser.add_argument("--check", action="store_true", help="check the configuration and leave")
    parser.add_argument(
        "--migrate", action="store_true", help="bring the database up to date and leave"
    )


def main(arguments: argparse.Namespace) -> int:
    """Runs until stopped."""
    try:
        from gpupool.controller import main as daemon
    except ModuleNotFoundError as error:
        print(
            f"gpupool controller: {error.name} is not installed; pip install 'gpupool[controller]'",
            file=sys.stderr,
        )
        return 1
    words = [] if arguments.config is None else ["--config", str(arguments.config)]
    words += ["--check"] if arguments.check else []
    words += ["--migrate"] if arguments.migrate else []
    return daemon.main(words)
