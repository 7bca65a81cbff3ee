"""Domains on a host that a controller leads: it alone gives out, so a domain uses the vGPUs that it
has reserved here under the domain's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gpupool.hostd.core import placement
from gpupool.hostd.core.controlled import Ask, Found, Missing, Mistaken
from gpupool.hostd.core.vgpu import Vgpu
from gpupool.hostd.core.vgpu_table import VgpuTable
from gpupool.hostd.core.vm import Vm, VmError, VmOrder, VmVgpu, vgpu_names

# The vGPU of the controller's that somebody of that tenant means by a name.
LookUp = Callable[[str, str], "Found | Missing | Ask | Mistaken"]


def bind(
    order: VmOrder, tenant: str, look_up: LookUp, table: VgpuTable, others: Iterable[Vm]
) -> tuple[str, ...]:
    """Local names of the vGPUs that a domain uses, in the order of what it asks for. `others`: VMs
    that use some already. Raises VmError.
    """
    bound = []
    users = {name: vm for vm in others if vm.uuid != order.uuid for name in vm.bound}
    names = vgpu_names(order.name, order.uuid, len(order.wanted), ())
    for name, wanted in zip(names, order.wanted, strict=True):
        found = look_up(name, tenant)
        vgpu = table.find(found.name) if isinstance(found, Found) else None
        if vgpu is None:
            why = "" if isinstance(found, (Found, Ask)) else f" ({found.text})"
            whose = f" --tenant {tenant}" if tenant else ""
            raise VmError(
                f"domain {order.name or order.uuid}: the controller that leads this host has no "
                f"reserved vGPU {name} here{why}; make it: gpupool vgpu create {name} --mode "
                f"reserved --node THIS_HOST{whose} ... --controller URL"
            )
        _check_enough(order, vgpu, wanted)
        user = users.get(vgpu.name)
        if user is not None:
            raise VmError(
                f"vGPU {vgpu.name} is used by domain {user.name or user.uuid} ({user.uuid}) until "
                "that is released"
            )
        bound.append(vgpu.name)
    return tuple(bound)


def _check_enough(order: VmOrder, vgpu: Vgpu, wanted: VmVgpu) -> None:
    asked, has = wanted.quota, vgpu.quota
    less_memory = has.memory_mib and not 0 < asked.memory_mib <= has.memory_mib
    if asked.compute_percent > has.compute_percent or less_memory:
        raise VmError(
            f"domain {order.name or order.uuid} asks for {placement.describe(asked)}, and the "
            f"controller's vGPU {vgpu.name} has {placement.describe(has)}; change one of them"
        )
