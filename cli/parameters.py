"""Options that several commands share, and how their values are checked."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="print JSON")]
AdminSocket = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="ask the hostd behind this socket (needed if there are two)"),
]


def checked(parse: Callable[[str], Any]) -> Callable[[str | None], str | None]:
    """A check of one option by a function that argparse uses elsewhere; the text stays a text."""

    def check(text: str | None) -> str | None:
        try:
            if text is not None:
                parse(text)
        except argparse.ArgumentTypeError as error:
            raise typer.BadParameter(str(error)) from error
        return text

    return check
