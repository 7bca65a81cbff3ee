"""`gpupool operation`: long actions, such as a GPU's way to the other pool."""

from __future__ import annotations

from typing import Annotated

import typer

from gpupool.cli import layout
from gpupool.cli.asking import EXITS, Asking, names, verb
from gpupool.cli.progress import finish

DESCRIPTION = "Long actions: those that go on, and the last that have ended."
APP = layout.group("operation", DESCRIPTION, EXITS)

_known = names(lambda asking: [one.id for one in asking.backend.operations()])
Number = Annotated[
    str,
    typer.Argument(metavar="OPERATION", autocompletion=_known, help="as `operation list` has them"),
]


@verb(
    APP,
    "list",
    "show all of them",
    "Shows the operations.",
    "example:    gpupool operation list --json | jq '.operations[] | select(.state == \"failed\")'",
)
def list_all(asking: Asking) -> int:
    """Shows them."""
    found = asking.backend.operations()
    if asking.as_json:
        asking.answer(operations=found)
        return 0
    rows = [
        [
            one.id,
            one.kind,
            one.target,
            one.goal or "-",
            one.state,
            f"{one.percent}%",
            one.error or one.progress or "-",
        ]
        for one in found
    ]
    header = ("OPERATION", "KIND", "TARGET", "GOAL", "STATE", "DONE", "PROGRESS")
    asking.show(header, rows, "no operations")
    return 0


@verb(
    APP,
    "show",
    "show one, or wait for it",
    "Shows one operation; with --wait until it has ended, and then fails if it did.",
    "example:    gpupool operation show 7 --wait",
)
def show(
    asking: Asking,
    number: Number,
    wait: Annotated[bool, typer.Option("--wait", help="until it has ended")] = False,
) -> int:
    """Shows it."""
    one = asking.backend.operation(number)
    one = finish(asking.backend, one, wait=wait)
    if asking.as_json:
        asking.answer(operation=one)
        return 0
    asking.facts(
        [
            ("operation", one.id),
            ("kind", one.kind),
            ("target", one.target),
            ("goal", one.goal or "-"),
            ("state", one.state),
            ("done", f"{one.percent}%"),
            ("progress", one.progress or "-"),
            ("error", one.error or "-"),
            ("started", one.started or "-"),
            ("ended", one.ended or "-"),
        ]
    )
    return 0


@verb(
    APP,
    "cancel",
    "cancel one",
    "Cancels an operation where that is still possible: a GPU that drains goes back to work.",
    "example:    gpupool operation cancel 7",
)
def cancel(asking: Asking, number: Number) -> int:
    """Asks for it."""
    one = asking.backend.cancel_operation(number)
    if asking.as_json:
        asking.answer(operation=one)
    else:
        asking.done(f"operation {one.id} is {one.state}: {one.progress}")
    return 0
