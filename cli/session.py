"""`gpupool session`: the client programs that use vGPUs now."""

from __future__ import annotations

from typing import Annotated

import typer

from gpupool.cli import layout, parameters
from gpupool.cli.asking import EXITS, Asking, names, verb
from gpupool.cli.progress import finish

DESCRIPTION = """\
A session is one client program on its vGPUs. `gpupool status` shows more of those of this machine.
"""
APP = layout.group("session", DESCRIPTION, EXITS)

_known = names(lambda asking: [one.id for one in asking.backend.sessions()])


@verb(
    APP,
    "list",
    "show all of them",
    "Shows the sessions.",
    """\
examples:
  gpupool session list
  gpupool session list --json | jq '.sessions | length'
""",
)
def list_all(asking: Asking) -> int:
    """Shows them."""
    found = asking.backend.sessions()
    if asking.as_json:
        asking.answer(sessions=found)
        return 0
    rows = [
        [
            one.id,
            one.program or "?",
            one.kind or "-",
            "-" if one.pid is None else one.pid,
            one.vgpu or "-",
            one.gpu or "-",
            one.node or "-",
            one.since,
            one.state,
        ]
        for one in found
    ]
    header = ("SESSION", "PROGRAM", "KIND", "PID", "VGPU", "GPU", "NODE", "SINCE", "STATE")
    asking.show(header, rows, "no sessions")
    return 0


@verb(
    APP,
    "end",
    "end some of them",
    """\
Ends sessions: their programs get CUDA_ERROR_DEVICE_UNAVAILABLE from then on. A controller has the
session's node do it, and waits until that says that it is done; a tenant may end its own.
""",
    """\
examples:
  gpupool session end 3 4
  gpupool session end gpu7/3 --controller https://gpupool.example.org
""",
)
def end(
    asking: Asking,
    session: Annotated[
        list[str],
        typer.Argument(metavar="SESSION", autocompletion=_known, help="as `session list` has them"),
    ],
    kill: Annotated[
        bool, typer.Option("--kill", help="kill the worker instead of asking it")
    ] = False,
    no_wait: parameters.NoWait = False,
) -> int:
    """Ends them: all are asked for before the first is waited for."""
    begun = [(each, asking.backend.end_session(each, kill)) for each in session]
    operations = []
    for each, operation in begun:
        if operation is not None:
            operation = finish(asking.backend, operation, wait=not no_wait)
            operations.append(operation)
        if asking.as_json:
            continue
        if operation is not None and operation.running:
            asking.done(f"operation {operation.id} has begun: {operation.progress}")
        else:
            asking.done(f"ended session {each}")
    if asking.as_json:
        more = {"operations": operations} if operations else {}
        asking.answer(ended=list(session), **more)
    return 0
