"""`gpupool tenant`: who shares a pool, and how much each may hold."""

from __future__ import annotations

from typing import Annotated

import typer

from gpupool.cli import layout, parameters
from gpupool.cli.asking import EXITS, Asking, names, verb
from gpupool.cli.model import Tenant, TenantQuota

DESCRIPTION = """\
A tenant is one user of the pool: it sees its own vGPUs and sessions, and holds no more than its
quota. Its tokens are made by `gpupool token create --role tenant --tenant NAME`.
"""
APP = layout.group("tenant", DESCRIPTION, EXITS)

_known = names(lambda asking: [one.name for one in asking.central.tenants()])
Name = Annotated[str, typer.Argument(metavar="NAME", autocompletion=_known, help="name or id")]
Vgpus = Annotated[
    int | None, typer.Option(metavar="N", min=0, help="so many vGPUs; default: no limit")
]
Compute = Annotated[
    int | None,
    typer.Option(
        metavar="P", min=0, help="percent of GPUs, together: 250 is two and a half; no limit"
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="M",
        callback=parameters.checked(parameters.quota_mib),
        help="MiB, or like 80G, together; default: no limit",
    ),
]


def _quota(vgpus: int | None, compute: int | None, memory: str | None) -> TenantQuota:
    return TenantQuota(vgpus, compute, None if memory is None else parameters.quota_mib(memory))


@verb(
    APP,
    "create",
    "make one",
    "Makes a tenant, with the quota that is named.",
    "example:    gpupool tenant create research --compute 400 --memory 320G",
)
def create(
    asking: Asking,
    name: Annotated[str, typer.Argument(metavar="NAME", help="what it is called")],
    vgpus: Vgpus = None,
    compute: Compute = None,
    memory: Memory = None,
) -> int:
    """Makes it."""
    made = asking.central.create_tenant(name, _quota(vgpus, compute, memory))
    if asking.as_json:
        asking.answer(tenant=made)
    else:
        asking.done(f"made tenant {made.name}: {_limits(made)}")
    return 0


@verb(
    APP,
    "list",
    "show all of them",
    "Shows the tenants, their quotas, and what of them is in use.",
    "example:    gpupool tenant list --json | jq '.tenants[] | {name, use}'",
)
def list_all(asking: Asking) -> int:
    """Shows them."""
    found = asking.central.tenants()
    if asking.as_json:
        asking.answer(tenants=found)
        return 0
    rows = []
    for one in found:
        use, quota = one.use, one.quota
        rows.append(
            [
                one.name,
                _of(use.vgpus, quota.vgpus, ""),
                _of(use.compute_percent, quota.compute_percent, "%"),
                _of(use.memory_mib, quota.memory_mib, " MiB"),
                one.id,
            ]
        )
    asking.show(("NAME", "VGPUS", "COMPUTE", "MEMORY", "TENANT"), rows, "no tenants")
    return 0


@verb(
    APP,
    "quota",
    "give one another quota",
    """\
Sets the whole quota: what is not named has no limit afterwards. One below what is in use takes
nothing away; it only forbids more.
""",
    "example:    gpupool tenant quota research --compute 200 --memory 160G",
)
def quota(
    asking: Asking,
    name: Name,
    vgpus: Vgpus = None,
    compute: Compute = None,
    memory: Memory = None,
) -> int:
    """Sets it."""
    changed = asking.central.set_quota(name, _quota(vgpus, compute, memory))
    if asking.as_json:
        asking.answer(tenant=changed)
    else:
        asking.done(f"tenant {changed.name}: {_limits(changed)}")
    return 0


@verb(
    APP,
    "delete",
    "delete one that has no vGPUs",
    "Deletes a tenant that has no vGPUs, and its tokens.",
    "example:    gpupool tenant delete research",
)
def delete(asking: Asking, name: Name) -> int:
    """Deletes it."""
    asking.central.delete_tenant(name)
    if asking.as_json:
        asking.answer(deleted=name)
    else:
        asking.done(f"deleted tenant {name}")
    return 0


def _limits(one: Tenant) -> str:
    quota = one.quota
    limits = [
        f"{what} {value}{unit}"
        for what, value, unit in (
            ("vGPUs", quota.vgpus, ""),
            ("compute", quota.compute_percent, "%"),
            ("memory", quota.memory_mib, " MiB"),
        )
        if value is not None
    ]
    return ", ".join(limits) or "no limits"


def _of(used: int, limit: int | None, unit: str) -> str:
    return f"{used}{unit}" if limit is None else f"{used} of {limit}{unit}"
