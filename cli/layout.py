"""How help looks: plain text of one shape for every command, at most 110 columns, ready for a pipe.

Typer's own layout wraps paragraphs anew and draws boxes; ours keeps the lines of descriptions and
examples as they were written.
"""

from __future__ import annotations

import inspect
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

WIDTH = 110
_COLUMN = 26  # where the explanations begin
# In our words, not Typer's.
_OWN = {
    "help": ("-h, --help", "show this help"),
    "install_completion": ("--install-completion", "set up tab completion for this shell"),
    "show_completion": ("--show-completion", "print what --install-completion would set up"),
}
# Handed down from the top to every command.
SETTINGS = {"terminal_width": WIDTH, "help_option_names": ["-h", "--help"]}


def group(name: str, description: str, epilog: str) -> typer.Typer:
    """A noun with verbs."""
    one = typer.Typer(
        name=name,
        cls=Group,
        help=description,
        epilog=epilog,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    # A noun with one verb stays a noun: without a callback Typer would make that verb the command.
    @one.callback()
    def nothing() -> None:
        """The verbs do it."""

    return one


class Command(TyperCommand):
    """A command with our help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes all of it."""
        _write(self, ctx, formatter)

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """As `usage:` also in errors."""
        _write_usage(self, ctx, formatter)


class Group(TyperGroup):
    """A noun with our help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes all of it."""
        _write(self, ctx, formatter)

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """As `usage:` also in errors."""
        _write_usage(self, ctx, formatter)

    def sections(self) -> dict[str, tuple[str, ...]]:
        """Title -> commands."""
        return {"": tuple(self.commands)}


def _write_usage(command: Any, ctx: Any, formatter: Any) -> None:
    formatter.write_usage(
        ctx.command_path, " ".join(command.collect_usage_pieces(ctx)), prefix="usage: "
    )


def _write(command: Command | Group, ctx: Any, formatter: Any) -> None:
    command.format_usage(ctx, formatter)
    formatter.write("\n" + inspect.cleandoc(command.help or "").rstrip() + "\n")
    if isinstance(command, Group):
        formatter.write("\ncommands:\n")
        for title, names in command.sections().items():
            if title:
                formatter.write(f"  {title}:\n")
            for name in names:
                line = command.commands[name].get_short_help_str(WIDTH)
                formatter.write(f"    {name:<11} {line}\n")
    for kind, lines in _parameters(command, ctx).items():
        if lines:
            formatter.write(f"\n{kind}s:\n")
            with formatter.indentation():
                formatter.write_dl(lines, col_max=_COLUMN)
    if command.epilog:
        formatter.write("\n" + inspect.cleandoc(command.epilog).rstrip() + "\n")


def _parameters(command: Command | Group, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Kind -> how it is written and what it means."""
    records: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
    for parameter in command.get_params(ctx):
        if parameter.name in _OWN:
            records["option"].append(_OWN[parameter.name])
        elif record := parameter.get_help_record(ctx):
            flags, text = record
            if parameter.param_type_name == "argument":  # without its Python type
                flags = getattr(parameter, "metavar", None) or parameter.name.upper()
                text = text.removesuffix("[required]").rstrip()  # the usage line says so
            records[parameter.param_type_name].append((flags, text))
    return records
