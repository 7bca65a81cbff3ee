"""Makes Typer know the options of a command that argparse reads, for tab completion.

Such a command declares its options once, by calls of `add_argument`; here the calls are listened
to. The command itself never comes this way: see cli/main.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from gpupool.cli import layout


class _Listener:
    """Takes the place of argparse's parser."""

    def __init__(self, completions: Mapping[str, Callable[..., list[str]]]) -> None:
        self._completions = completions
        self.parameters: list[inspect.Parameter] = []

    def add_argument(self, *flags: str, **keywords: Any) -> None:
        """One option or argument of the command."""
        named = flags[0].startswith("-")
        about = keywords.get("help", "")
        kind: Any = list[str] if not named else str
        if keywords.get("action") == "store_true":
            kind = bool
        words = tuple(str(choice) for choice in keywords.get("choices", ()))

        def complete(incomplete: str) -> list[str]:
            return [word for word in words if word.startswith(incomplete)]

        info: Any = (
            typer.Option(
                *flags,
                help=about,
                autocompletion=complete if words else self._completions.get(flags[-1]),
            )
            if named
            else typer.Argument(help=about)
        )
        self.parameters.append(
            inspect.Parameter(
                flags[-1].lstrip("-").replace("-", "_"),
                inspect.Parameter.KEYWORD_ONLY,
                default=False if kind is bool else None,
                annotation=Annotated[kind, info],
            )
        )


def add(
    top: typer.Typer,
    noun: str,
    line: str,
    add_arguments: Callable[[Any], None],
    completions: Mapping[str, Callable[..., list[str]]],
) -> None:
    """Tells Typer of a command, its options, and what completes the values of some of them."""
    listener = _Listener(completions)
    add_arguments(listener)

    def command(**_: object) -> None:
        raise AssertionError(f"gpupool {noun} is read by argparse")

    # What Typer reads; no function has it in its type.
    command.__signature__ = inspect.Signature(listener.parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in listener.parameters}
    top.command(noun, cls=layout.Command, help=line)(command)
