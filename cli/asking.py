"""Commands that ask a backend: the options they share, whom they ask, how they answer."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from gpupool.cli import layout, settings, table
from gpupool.cli.backend import Backend, BackendError, Central, Local, RefusedError, UsageError
from gpupool.cli.commands import ReaderLeftError

EXITS = """\
exit codes: 0 done; 1 nobody answered, or it failed; 2 the command line or cli.toml is wrong;
3 refused: there is no room or no such thing, it is in use, or it is not allowed (stderr says which)
"""
COMPLETION_TIMEOUT_S = 2.0  # nobody waits longer for Tab
_TIMEOUT_S = 30.0
Verb = Callable[..., int]


@dataclasses.dataclass(frozen=True)
class Asking:
    """One command: whom it asks, and in what form it answers."""

    said: settings.Said
    as_json: bool = False
    timeout_s: float = _TIMEOUT_S

    @cached_property
    def backend(self) -> Backend:
        """Who answers. Raises BackendError."""
        if self._controller is not None:
            return self.central
        from gpupool.cli.local_backend import LocalBackend

        return LocalBackend(self.said.admin_socket, self.timeout_s)

    @cached_property
    def local(self) -> Local:
        """The same, for what only a hostd has. Raises BackendError."""
        if self._controller is not None:
            raise RefusedError(
                "virtual machines are a hostd's, and a controller was asked; on that machine ask "
                "its hostd with --admin-socket"
            )
        from gpupool.cli.local_backend import LocalBackend

        return LocalBackend(self.said.admin_socket, self.timeout_s)

    @cached_property
    def central(self) -> Central:
        """The same, for what only a controller has. Raises BackendError."""
        if self._controller is None:
            raise UsageError(
                "this is a controller's to answer, and none is named: give --controller URL, "
                f"GPUPOOL_CONTROLLER, or controller in {settings.path()}"
            )
        from gpupool.cli.rest_backend import RestBackend

        return RestBackend(self._controller, self.timeout_s)

    @cached_property
    def _controller(self) -> settings.Controller | None:
        return settings.controller(self.said)

    @property
    def where(self) -> str:
        """Who answers, in words."""
        return self.backend.where

    def answer(self, **found: Any) -> None:
        """For programs: dataclasses, or lists of them, by name."""
        content = {name: _plain(value) for name, value in found.items()}
        print(json.dumps({"from": self.where, **content}, indent=2))

    def show(self, header: Sequence[str], rows: Sequence[Sequence[object]], nothing: str) -> None:
        """For people. Who answers is told beside the table, where a pipe does not see it."""
        print(f"from {self.where}", file=sys.stderr)
        if rows:
            table.show(header, rows)
        else:
            print(nothing, file=sys.stderr)

    def facts(self, rows: Sequence[tuple[str, object]]) -> None:
        """One thing, for people: a line for each of its properties."""
        print(f"from {self.where}", file=sys.stderr)
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            print(f"{name:<{width}}  {table.printable(value)}".rstrip())

    def also(self, text: str) -> None:
        """One more line for people, after a table."""
        print(table.printable(text))

    def done(self, text: str) -> None:
        """What was done, for people."""
        print(f"{table.printable(text)} ({self.where})")


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    # is_dataclass() is also true of a class, which no value here is.
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


_COMMON: dict[str, tuple[Any, Any]] = {
    "as_json": (Annotated[bool, typer.Option("--json", help="print JSON")], False),
    "controller": (
        Annotated[
            str | None,
            typer.Option(metavar="URL", help="ask this controller (GPUPOOL_CONTROLLER, cli.toml)"),
        ],
        None,
    ),
    "admin_socket": (
        Annotated[
            str | None, typer.Option(metavar="PATH", help="ask the hostd behind this socket")
        ],
        None,
    ),
    "token_file": (
        Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="token for the controller; mode 0600 (cli.toml)"),
        ],
        None,
    ),
    "ca_file": (
        Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="who signs the controller's certificate (cli.toml)"),
        ],
        None,
    ),
}


def command(name: str) -> Callable[[Verb], Verb]:
    """Makes a function a command of this name, with the options that all of them have.

    It gets an Asking and its own parameters, returns the exit code and may raise BackendError.
    """

    def wrap(function: Verb) -> Verb:
        hints = get_type_hints(function, include_extras=True)
        own = list(inspect.signature(function).parameters.values())[1:]
        parameters = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[one.name])
            for one in own
        ] + [
            inspect.Parameter(
                each, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
            for each, (annotation, default) in _COMMON.items()
        ]

        def called(**given: Any) -> int:
            common = {each: given.pop(each) for each in _COMMON}
            try:
                return function(Asking(_said(common), common["as_json"]), **given)
            except BackendError as error:
                print(f"gpupool {name}: {error}", file=sys.stderr)
                return error.exit_code
            except BrokenPipeError as error:
                raise ReaderLeftError from error

        # What Typer reads; no function has it in its type.
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {one.name: one.annotation for one in parameters}
        return called

    return wrap


def verb(
    noun: typer.Typer, name: str, line: str, description: str, example: str
) -> Callable[[Verb], Verb]:
    """The same for a verb of this noun; `line` is its line in the noun's help."""

    def add(function: Verb) -> Verb:
        noun.command(
            name,
            cls=layout.Command,
            help=description,
            epilog=f"{EXITS}\n{example}",
            short_help=line,
        )(command(f"{noun.info.name} {name}")(function))
        return function

    return add


def _said(given: dict[str, Any]) -> settings.Said:
    return settings.Said(
        given.get("controller") or "",
        given.get("admin_socket") or "",
        given.get("token_file"),
        given.get("ca_file"),
    )


def names(list_names: Callable[[Asking], list[str]]) -> Callable[..., list[str]]:
    """Completion by asking the backend that the line so far names; in doubt, nothing."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            asking = Asking(_said(ctx.params), timeout_s=COMPLETION_TIMEOUT_S)
            return [name for name in list_names(asking) if name.startswith(incomplete)]
        except BackendError:
            return []

    return complete
