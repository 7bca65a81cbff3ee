"""The `gpupool` command: reads the command line and calls the one file that knows the noun.

`gpupool run` must start as fast as it can, and so must the hostd that it starts: what they take is
read by argparse, and neither Typer nor Rich is imported. Everything else is in cli/app.py.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from gpupool import __version__
from gpupool.cli.commands import COMMANDS, PLAIN, ReaderLeftError

__all__ = ["COMMANDS", "PLAIN", "guarded", "main", "parser"]
INTERRUPTED, READER_LEFT = 130, 141


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions; wide enough for real sentences."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)


def parser(noun: str) -> argparse.ArgumentParser:
    """What one of PLAIN takes."""
    module = importlib.import_module(f"gpupool.cli.{noun}")
    one = argparse.ArgumentParser(
        prog=f"gpupool {noun}",
        description=module.DESCRIPTION,
        epilog=module.EPILOG,
        formatter_class=Help,
        allow_abbrev=False,
    )
    module.add_arguments(one)
    return one


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(f"gpupool {__version__}")
        return 0
    if words and words[0] in PLAIN:
        arguments = parser(words[0]).parse_args(words[1:])
        module = importlib.import_module(f"gpupool.cli.{words[0]}")
        return guarded(lambda: int(module.main(arguments)))
    from gpupool.cli import app

    return guarded(lambda: app.main(words))


def guarded(command: Callable[[], int]) -> int:
    """Its exit code, also when it is interrupted or nobody reads what it says."""
    try:
        code = command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except (BrokenPipeError, ReaderLeftError):
        # Our reader left (`gpupool status | head`): nothing to say, nobody to say it to. What is
        # still in the buffer must go somewhere, or Python ends with 120 and a complaint.
        _discard_output()
        return READER_LEFT
    return code


def _discard_output() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # it is closed already
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
