"""`gpupool events`: what happened at a controller."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated

import typer

from gpupool.cli.asking import EXITS, Asking, command
from gpupool.cli.table import printable

DESCRIPTION = """\
Prints what happened: vGPUs made, resized and deleted, nodes lost and found, GPUs moved. One line an
event, and with --json one JSON object a line.
"""
EPILOG = f"""\
{EXITS}
examples:
  gpupool events --follow
  gpupool events --follow --json | jq -r 'select(.kind == "node.lost") | .message'
  gpupool events --since 1042          what came after event 1042
"""


@command("events")
def main(
    asking: Asking,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="go on until interrupted; resumes by itself")
    ] = False,
    since: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="only what came after this event")
    ] = None,
) -> int:
    """Prints them."""
    if not asking.as_json:
        print(f"from {asking.central.where}", file=sys.stderr)
    for one in asking.central.events(since, follow):
        if asking.as_json:
            print(json.dumps(dataclasses.asdict(one)), flush=True)
        else:
            print(
                f"{one.number} {one.time} {one.kind} {printable(one.subject)}: "
                f"{printable(one.message)}",
                flush=True,
            )
    return 0
