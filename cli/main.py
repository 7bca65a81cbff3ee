"""The `gpupool` command: reads the command line and calls the one file that knows the noun.

Subcommands import their code only when they run: `gpupool run` must start as fast as it can.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from gpupool import __version__

# noun -> one line of help
COMMANDS = {
    "run": "run a program on a vGPU of this machine or of another host",
    "devices": "show the GPUs that can be given out",
    "status": "show the running hostd and its sessions",
    "smi": "show this guest's vGPUs, memory, load and processes, as nvidia-smi would",
    "stop": "end sessions, or tell hostd to leave",
    "bench": "time this GPU natively and through gpupool, and compare",
    "doctor": "say what is missing on this machine and what to do about it",
    "hostd": "run the daemon that gives GPUs to programs",
}

_DESCRIPTION = """\
gpupool lets unmodified CUDA programs share GPUs. A program's CUDA calls travel to a worker process
of hostd, the daemon of the GPU machine, which makes them on the real card (or, where there is none,
on the software GPU).

  gpupool run -- python train.py              one command; starts a private hostd if none runs
  gpupool run --compute 25 --memory 8G -- ./app
  gpupool status                              who is using which GPU
"""
_EPILOG = """\
exit codes: 0 done; 1 the answer is no (nothing found, a check failed); 2 the command line is wrong;
`gpupool run` has its own, see `gpupool run --help`.
Environment variables and files: docs/configuration.md.
"""


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions; wide enough for real sentences."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole command line. With `only`, the options of just that subcommand are filled in."""
    top = argparse.ArgumentParser(
        prog="gpupool",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=Help,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"gpupool {__version__}")
    nouns = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for noun, line in COMMANDS.items():
        if only is not None and noun != only:
            nouns.add_parser(noun, help=line, add_help=False)
            continue
        module = importlib.import_module(f"gpupool.cli.{noun}")
        sub = nouns.add_parser(
            noun,
            help=line,
            description=module.DESCRIPTION,
            epilog=getattr(module, "EPILOG", None),
            formatter_class=Help,
            allow_abbrev=False,
        )
        module.add_arguments(sub)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""
    words = list(sys.argv[1:] if argv is None else argv)
    only = next((word for word in words if not word.startswith("-")), "")
    arguments = parser(only if only in COMMANDS else None).parse_args(words)
    module = importlib.import_module(f"gpupool.cli.{arguments.command}")
    try:
        return int(module.main(arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Our reader left (`gpupool status | head`): nothing to say, nobody to say it to.
        sys.stderr.close()
        return 141
