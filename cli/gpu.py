"""`gpupool gpu`: the cards, and the pool that each is in."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from gpupool.cli import layout, parameters
from gpupool.cli.asking import EXITS, Asking, names, verb
from gpupool.cli.backend import UsageError
from gpupool.cli.model import Gpu, PoolMove
from gpupool.cli.progress import finish

DESCRIPTION = """\
A GPU is in one of two pools: pooled GPUs are cut into vGPUs; a native one is given out whole, to
containers (as a CDI device) or to a virtual machine (bound to vfio-pci).
"""
APP = layout.group("gpu", DESCRIPTION, EXITS)

_gpus = names(lambda asking: [one.uuid for one in asking.backend.gpus()])


class Pool(str, enum.Enum):
    """Where a GPU can be sent."""

    POOLED = "pooled"
    NATIVE = "native"


class NativeFor(str, enum.Enum):
    """For whom a native GPU is."""

    CONTAINER = "container"
    VFIO = "vfio"


@verb(
    APP,
    "list",
    "show all of them",
    "Shows the GPUs: pool, health, what of them is left to give out, and how busy they are.",
    """\
examples:
  gpupool gpu list
  gpupool gpu list --json | jq -r '.gpus[] | select(.pool == "native") | .uuid'
""",
)
def list_all(asking: Asking) -> int:
    """Shows them."""
    found = asking.backend.gpus()
    if asking.as_json:
        asking.answer(gpus=found)
        return 0
    header = [
        *("UUID", "MODEL", "MEMORY", "POOL", "HEALTH", "COMPUTE LEFT", "MEMORY LEFT"),
        *("SESSIONS", "NODE", "NOTE"),
    ]
    rows = [_cells(one) for one in found]
    for name in ("SESSIONS", "NODE", "NOTE"):
        if all(row[name] == "" for row in rows):
            header.remove(name)
    asking.show(header, [[row[name] for name in header] for row in rows], "no GPUs")
    return 0


@verb(
    APP,
    "pool",
    "move one to the other pool",
    """\
Moves a GPU to the other pool. On the way to native it takes no new sessions and waits for those
that run; after --deadline they are ended. On the way back it waits until nobody uses the card. A
crash at any moment is made up for by the next hostd.
""",
    """\
examples:
  gpupool gpu pool GPU-5a1c... native --deadline 10m
  gpupool gpu pool GPU-5a1c... native --for vfio --no-wait
  gpupool gpu pool GPU-5a1c... pooled
""",
)
def pool(
    asking: Asking,
    uuid: Annotated[str, typer.Argument(metavar="UUID", autocompletion=_gpus, help="of the GPU")],
    to: Annotated[Pool, typer.Argument(metavar="pooled|native", help="where it should go")],
    native_for: Annotated[
        NativeFor | None,
        typer.Option("--for", metavar="container|vfio", help="default: as the host says"),
    ] = None,
    deadline: parameters.Deadline = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="also with reserved vGPUs: they stay, and nobody can use them"
        ),
    ] = False,
    no_wait: parameters.NoWait = False,
) -> int:
    """Begins it, and waits for it."""
    if native_for is not None and to is not Pool.NATIVE:
        raise UsageError("--for belongs to native")
    operation = asking.backend.move_gpu(
        PoolMove(
            uuid,
            to.value,
            native_for.value if native_for else "",
            None if deadline is None else parameters.duration_s(deadline),
            force,
        )
    )
    operation = finish(asking.backend, operation, wait=not no_wait)
    if asking.as_json:
        asking.answer(operation=operation)
    elif operation.running:
        asking.done(f"operation {operation.id} has begun: {operation.progress}")
    else:
        asking.done(f"{uuid} is {to.value}")
    return 0


def _cells(one: Gpu) -> dict[str, object]:
    return {
        "UUID": one.uuid,
        "MODEL": one.model,
        "MEMORY": f"{one.memory_mib} MiB",
        "POOL": one.pool,
        "HEALTH": "ok" if one.healthy else "failed",
        "COMPUTE LEFT": "-" if one.compute_free_percent is None else f"{one.compute_free_percent}%",
        "MEMORY LEFT": "-" if one.memory_free_mib is None else f"{one.memory_free_mib} MiB",
        "SESSIONS": "" if one.sessions is None else one.sessions,
        "NODE": one.node,
        "NOTE": one.note,
    }
