"""The `gpupool` command as a Typer application.

Only the noun that was asked for is imported: for the others their line of help is enough.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any

import typer

from gpupool import __version__
from gpupool.cli import asking, layout, rows
from gpupool.cli.commands import COMMANDS, GROUPS, PLAIN, ReaderLeftError

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
130 interrupted; 141 nobody reads the output; `gpupool run` has its own, see `gpupool run --help`.
Tab completion: gpupool --install-completion. NO_COLOR=1 and pipes get no colours.
Environment variables and files: docs/configuration.md. All commands: docs/cli.md.
"""
_COMPLETION = "_GPUPOOL_COMPLETE"  # set by the shell's completion function, as Typer names it


class _Top(layout.Group):
    """The nouns, grouped."""

    def sections(self) -> dict[str, tuple[str, ...]]:
        """As they are told in the help."""
        return GROUPS


_vgpus = asking.names(lambda one: [vgpu.name for vgpu in one.backend.vgpus() if vgpu.name])


def application(noun: str | None) -> typer.Typer:
    """The whole command line, with the parameters of just that noun."""
    top = typer.Typer(
        name="gpupool",
        cls=_Top,
        help=_DESCRIPTION,
        epilog=_EPILOG,
        context_settings=layout.SETTINGS,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    @top.callback()
    def options(
        version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    ) -> None:
        if version:
            print(f"gpupool {__version__}")
            raise typer.Exit

    for each, line in COMMANDS.items():
        if each != noun:
            top.command(each, cls=layout.Command, help=line)(_stub)
            continue
        module = importlib.import_module(f"gpupool.cli.{each}")
        if each in PLAIN:
            rows.add(top, each, line, module.add_arguments, {"--vgpu": _vgpus})
        elif hasattr(module, "APP"):
            top.add_typer(module.APP, name=each, short_help=line)
        else:
            top.command(
                each,
                cls=layout.Command,
                help=module.DESCRIPTION,
                epilog=module.EPILOG,
                short_help=line,
            )(_telling_who_left(module.main))
    return top


def _telling_who_left(function: Callable[..., int]) -> Callable[..., int]:
    @wraps(function)
    def called(**given: Any) -> int:
        try:
            return function(**given)
        except BrokenPipeError as error:
            raise ReaderLeftError from error

    return called


def _stub() -> None:
    """Stands for a noun that was not asked for."""


def main(words: Sequence[str]) -> int:
    """The exit code; says itself what is wrong with a command line."""
    noun = next((word for word in words if not word.startswith("-")), None)
    if os.environ.get(_COMPLETION):
        noun = _noun_to_complete()
    try:
        code = application(noun if noun in COMMANDS else None)(
            list(words), prog_name="gpupool", standalone_mode=False
        )
    except typer.TyperException as error:
        _explain(error)
        return error.exit_code
    return int(code or 0)


def _noun_to_complete() -> str | None:
    """bash sends the line in COMP_WORDS, the other shells in _TYPER_COMPLETE_ARGS."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return next((word for word in line.split()[1:] if not word.startswith("-")), None)


def _explain(error: typer.TyperException) -> None:
    context = getattr(error, "ctx", None)
    prog = context.command_path if context is not None else "gpupool"
    if context is not None:
        print(context.get_usage(), file=sys.stderr)
    text = error.format_message().rstrip(".").replace("Value error, ", "")
    print(f"{prog}: error: {text}; see {prog} --help", file=sys.stderr)
