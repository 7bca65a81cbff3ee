"""`gpupool vgpu`: vGPUs with a name, which programs use with `gpupool run --vgpu NAME`."""

from __future__ import annotations

from typing import Annotated

import typer

from gpupool.cli import layout, parameters
from gpupool.cli.asking import EXITS, Asking, names, verb
from gpupool.cli.backend import UsageError
from gpupool.cli.model import Placement, Quota, Vgpu, Wanted
from gpupool.cli.progress import finish

DESCRIPTION = """\
A vGPU is an allocation on one GPU: a share of its compute, an amount of its memory, or both. It is
made once, has a name, and is used by `gpupool run --vgpu NAME`, by several programs at a time, too.

reserved    holds its share and memory from now on, on one GPU
on-demand   holds them only while programs use it, on whatever GPU has room then
elastic     gets at least its share, and what others leave idle
hard        never gets more than its share
"""
APP = layout.group("vgpu", DESCRIPTION, EXITS)

_known = names(lambda asking: [one.name for one in asking.backend.vgpus() if one.name])
_gpus = names(lambda asking: [one.uuid for one in asking.backend.gpus()])

Name = Annotated[str, typer.Argument(metavar="NAME", autocompletion=_known, help="name or id")]
Policy = Annotated[
    parameters.Policy | None, typer.Option(help="elastic or hard", metavar="elastic|hard")
]
Priority = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, max=9, help="0 to 9; who has more gets room first"),
]


def _quota(
    compute: str | None, memory: str | None, policy: parameters.Policy | None, priority: int | None
) -> Quota:
    return Quota(
        None if compute is None else parameters.share_percent(compute),
        None if memory is None else parameters.quota_mib(memory),
        None if policy is None else policy.value,
        priority,
    )


@verb(
    APP,
    "create",
    "make vGPUs",
    """\
Makes vGPUs. Several names are one request: all of them are made, or none. The options from --node
on are for a controller; a standalone hostd refuses them.
""",
    """\
examples:
  gpupool vgpu create trainer --compute 50 --memory 20G --mode reserved
  gpupool vgpu create infer --compute 25 --policy hard
  gpupool vgpu create rank0 rank1 --compute 100 --mode reserved --model H100
""",
)
def create(
    asking: Asking,
    wanted: Annotated[list[str], typer.Argument(metavar="NAME", help="one or more new names")],
    compute: parameters.Compute = None,
    memory: parameters.Memory = None,
    policy: Policy = None,
    priority: Priority = None,
    mode: Annotated[
        parameters.Mode, typer.Option(help="reserved or on-demand", metavar="reserved|on-demand")
    ] = parameters.Mode.ON_DEMAND,
    gpu: Annotated[
        str, typer.Option(metavar="UUID", autocompletion=_gpus, help="on this GPU, if reserved")
    ] = "",
    user: Annotated[
        list[str] | None,
        typer.Option(metavar="USER", help="who may use it (a standalone hostd; default: anybody)"),
    ] = None,
    node: Annotated[str, typer.Option(metavar="NAME", help="on this node")] = "",
    model: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="on a GPU of this model (or these)")
    ] = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            metavar="M",
            callback=parameters.checked(parameters.quota_mib),
            help="on a card with at least this much memory",
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="on a node with this label")
    ] = None,
    strategy: Annotated[
        parameters.Strategy | None,
        typer.Option(
            help="on the fullest GPU that fits, or the emptiest", metavar="binpack|spread"
        ),
    ] = None,
    same_node: Annotated[
        bool | None,
        typer.Option("--same-node/--any-node", help="of several: all on one node, as by default"),
    ] = None,
    distinct_gpus: Annotated[
        bool | None,
        typer.Option(
            "--distinct-gpus/--same-gpus-too", help="of several: each on a GPU of its own, the same"
        ),
    ] = None,
    tenant: Annotated[
        str, typer.Option(metavar="TENANT", help="for this tenant (operators only)")
    ] = "",
) -> int:
    """Makes them."""
    place = Placement(
        gpu,
        node,
        tuple(model or ()),
        parameters.quota_mib(gpu_memory) if gpu_memory else 0,
        parameters.labels(label or ()),
        strategy.value if strategy else "",
        same_node,
        distinct_gpus,
    )
    made = asking.backend.create_vgpus(
        Wanted(
            tuple(wanted),
            _quota(compute, memory, policy, priority),
            mode.value,
            place,
            tenant,
            tuple(parameters.uid(each) for each in user or ()),
        )
    )
    if asking.as_json:
        asking.answer(vgpus=made)
        return 0
    for one in made:
        where = f" on {one.gpu}" if one.gpu else ""
        asking.done(f"made vGPU {one.name}{where}")
    return 0


@verb(
    APP,
    "list",
    "show all of them, and who waits for one",
    "Shows the vGPUs, and the clients that wait for one. Those of one session have no name.",
    """\
examples:
  gpupool vgpu list
  gpupool vgpu list --json | jq -r '.vgpus[] | select(.sessions == 0) | .name'
""",
)
def list_all(asking: Asking) -> int:
    """Shows them."""
    found = asking.backend.vgpus()
    waiting = asking.backend.waiting()
    if asking.as_json:
        asking.answer(vgpus=found, waiting=waiting)
        return 0
    header = [
        *("NAME", "COMPUTE", "MEMORY", "USED", "POLICY", "PRIORITY", "MODE"),
        *("STATE", "SESSIONS", "USERS", "TENANT", "NODE", "GPU"),
    ]
    if not any(one.node or one.tenant for one in found):
        header = [name for name in header if name not in ("TENANT", "NODE")]
    if not any(one.users for one in found):
        header.remove("USERS")
    rows = [[_cells(one)[name] for name in header] for one in found]
    asking.show(header, rows, "no vGPUs; `gpupool vgpu create` makes one")
    for one in waiting:
        share = f"{one.compute_percent}% and {one.memory_mib} MiB"
        what = f"vGPU {one.vgpu}" if one.vgpu else f"a vGPU of {share}"
        asking.also(
            f"waiting, number {one.position}: {one.program} (pid {one.pid}) for {what}, "
            f"for {one.waited_s} s"
        )
    return 0


@verb(
    APP,
    "show",
    "show one",
    "Shows one vGPU.",
    "example:    gpupool vgpu show trainer --json",
)
def show(asking: Asking, name: Name) -> int:
    """Shows it."""
    one = asking.backend.vgpu(name)
    if asking.as_json:
        asking.answer(vgpu=one)
    else:
        # Users are a standalone hostd's, tenants and nodes a controller's.
        other = ("USERS",) if one.tenant else ("TENANT", "NODE")
        asking.facts([(key.lower(), each) for key, each in _cells(one).items() if key not in other])
    return 0


@verb(
    APP,
    "resize",
    "change what one may use, while it is used",
    """\
Changes what a vGPU may use, while programs use it: nothing is restarted, and what is not named
stays as it is. Memory can shrink to what is in use.
""",
    """\
examples:
  gpupool vgpu resize trainer --compute 20
  gpupool vgpu resize trainer --memory 30G --policy hard
""",
)
def resize(
    asking: Asking,
    name: Name,
    compute: parameters.Compute = None,
    memory: parameters.Memory = None,
    policy: Policy = None,
    priority: Priority = None,
) -> int:
    """Does it."""
    quota = _quota(compute, memory, policy, priority)
    if quota == Quota():
        raise UsageError("name --compute, --memory, --policy or --priority")
    one = asking.backend.resize_vgpu(name, quota)
    if asking.as_json:
        asking.answer(vgpu=one)
    else:
        cells = _cells(one)
        asking.done(
            f"vGPU {one.name}: compute {cells['COMPUTE']}, memory {cells['MEMORY']}, "
            f"{one.policy}, priority {one.priority}"
        )
    return 0


@verb(
    APP,
    "delete",
    "delete them",
    "Deletes vGPUs. One that is in use is refused, or with --force loses its sessions.",
    "example:    gpupool vgpu delete trainer --force",
)
def delete(
    asking: Asking,
    name: Annotated[
        list[str], typer.Argument(metavar="NAME", autocompletion=_known, help="names or ids")
    ],
    force: Annotated[
        bool, typer.Option("--force", help="end the sessions that use it; their programs fail")
    ] = False,
    no_wait: parameters.NoWait = False,
) -> int:
    """Deletes them, one after the other."""
    operations = []
    for each in name:
        operation = asking.backend.delete_vgpu(each, force)
        if operation is not None:
            operation = finish(asking.backend, operation, wait=not no_wait)
            operations.append(operation)
        if not asking.as_json:
            asking.done(f"deleted vGPU {each}")
    if asking.as_json:
        asking.answer(deleted=list(name), operations=operations)
    return 0


def _cells(one: Vgpu) -> dict[str, object]:
    return {
        "NAME": one.name or f"({one.id})",
        "COMPUTE": f"{one.compute_percent}%" if one.compute_percent else "rest",
        "MEMORY": f"{one.memory_mib} MiB" if one.memory_mib else "all",
        "USED": "-" if one.memory_used_mib is None else f"{one.memory_used_mib} MiB",
        "POLICY": one.policy,
        "PRIORITY": one.priority,
        "MODE": one.mode,
        "STATE": one.state,
        "SESSIONS": "-" if one.sessions is None else one.sessions,
        "USERS": ",".join(parameters.user(uid) for uid in one.users) or "any",
        "TENANT": one.tenant or "-",
        "NODE": one.node or "-",
        "GPU": one.gpu or "-",
    }
