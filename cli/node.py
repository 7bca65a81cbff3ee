"""`gpupool node`: the machines that a controller knows."""

from __future__ import annotations

from typing import Annotated

import typer

from gpupool.cli import layout, parameters
from gpupool.cli.asking import EXITS, Asking, names, verb
from gpupool.cli.model import Node
from gpupool.cli.progress import finish

DESCRIPTION = "The machines with GPUs that have registered with the controller."
APP = layout.group("node", DESCRIPTION, EXITS)

_known = names(lambda asking: [one.name for one in asking.central.nodes()])
Name = Annotated[str, typer.Argument(metavar="NODE", autocompletion=_known, help="name or id")]


@verb(
    APP,
    "list",
    "show all of them",
    "Shows the nodes. One that has been silent for 30 s is lost.",
    """\
examples:
  gpupool node list --controller https://gpupool.example.org
  gpupool node list --json | jq -r '.nodes[] | select(.state == "lost") | .name'
""",
)
def list_all(asking: Asking) -> int:
    """Shows them."""
    found = asking.central.nodes()
    if asking.as_json:
        asking.answer(nodes=found)
        return 0
    rows = [
        [
            one.name,
            one.state,
            _placing(one),
            "-" if one.gpus is None else one.gpus,
            one.version or "-",
            one.endpoint or "-",
            one.heard or "-",
            ",".join(f"{key}={value}" for key, value in sorted(one.labels.items())) or "-",
        ]
        for one in found
    ]
    header = ("NAME", "STATE", "PLACING", "GPUS", "VERSION", "ENDPOINT", "HEARD", "LABELS")
    asking.show(header, rows, "no nodes; `controller` in hostd.toml makes a hostd register")
    return 0


@verb(
    APP,
    "cordon",
    "keep new vGPUs away from one",
    "Keeps new vGPUs away from a node; what is there stays.",
    "example:    gpupool node cordon gpu7",
)
def cordon(asking: Asking, node: Name) -> int:
    """Does it."""
    asking.central.cordon_node(node, cordoned=True)
    return _done(asking, node, "cordoned")


@verb(
    APP,
    "uncordon",
    "let new vGPUs come to one again",
    "Lets new vGPUs come to a node again.",
    "example:    gpupool node uncordon gpu7",
)
def uncordon(asking: Asking, node: Name) -> int:
    """Does it."""
    asking.central.cordon_node(node, cordoned=False)
    return _done(asking, node, "uncordoned")


@verb(
    APP,
    "drain",
    "empty one, for maintenance",
    """\
Empties a node: no new vGPUs and programs come to it, and those that run are waited for; after
--deadline they are ended. On-demand vGPUs find room elsewhere with their next program; reserved
ones stay, and cannot be used meanwhile. It goes on when this command or the controller is
interrupted, and holds until `undrain`.
""",
    """\
examples:
  gpupool node drain gpu7
  gpupool node drain gpu7 --deadline 30m --no-wait
""",
)
def drain(
    asking: Asking,
    node: Name,
    deadline: parameters.Deadline = None,
    no_wait: parameters.NoWait = False,
) -> int:
    """Begins it, and waits for it."""
    deadline_s = None if deadline is None else parameters.duration_s(deadline)
    operation = asking.central.drain_node(node, deadline_s)
    operation = finish(asking.backend, operation, wait=not no_wait)
    if asking.as_json:
        asking.answer(operation=operation)
    elif operation.running:
        asking.done(f"operation {operation.id} has begun: {operation.progress}")
    else:
        asking.done(f"node {node} is drained")
    return 0


@verb(
    APP,
    "undrain",
    "let programs and vGPUs come to one again",
    "Ends the drain of a node, also one that still goes on.",
    "example:    gpupool node undrain gpu7",
)
def undrain(asking: Asking, node: Name) -> int:
    """Does it."""
    asking.central.undrain_node(node)
    return _done(asking, node, "undrained")


@verb(
    APP,
    "remove",
    "forget a lost one",
    """\
Forgets a lost node, and every vGPU on it. Its programs must not run any more: the machine is gone,
or switched off.
""",
    "example:    gpupool node remove gpu7",
)
def remove(asking: Asking, node: Name) -> int:
    """Does it."""
    asking.central.remove_node(node)
    return _done(asking, node, "removed")


def _placing(one: Node) -> str:
    if one.drain != "none":
        return one.drain
    return "cordoned" if one.cordoned else "-"


def _done(asking: Asking, node: str, what: str) -> int:
    if asking.as_json:
        asking.answer(**{what: node})
    else:
        asking.done(f"{what} node {node}")
    return 0
