"""Whether everything adds up: `python -m gpupool.controller --verify`, tests, the bench."""

from __future__ import annotations

from collections import defaultdict

from gpupool.controller.core.gpu import FULL_PERCENT
from gpupool.controller.core.ports import Page, Tables
from gpupool.controller.core.vgpu import Share, Vgpu

_EVERYTHING = Page(10_000_000)
_NOTHING = Share(0, 0)


def faults(tables: Tables) -> list[str]:
    """What is given out twice, or is not the sum of its parts. Nothing: all is well."""
    found = []
    on_gpu: dict[str, list[Vgpu]] = defaultdict(list)
    of_tenant: dict[str, list[Vgpu]] = defaultdict(list)
    for vgpu in tables.vgpus.page(_EVERYTHING):
        of_tenant[vgpu.tenant_id].append(vgpu)
        if vgpu.gpu_id is not None:
            on_gpu[vgpu.gpu_id].append(vgpu)
        elif vgpu.held != _NOTHING:
            found.append(f"{vgpu.id} holds {vgpu.held} and has no GPU")
    for gpu in tables.gpus.page(_EVERYTHING):
        compute, memory = _sums(on_gpu[gpu.id])
        if compute > FULL_PERCENT or memory > gpu.memory_mib:
            found.append(f"{gpu.id} is given out twice: {compute} %, {memory} MiB")
        if (gpu.compute_held_percent, gpu.memory_held_mib) != (compute, memory):
            held = f"{gpu.compute_held_percent} %, {gpu.memory_held_mib} MiB"
            found.append(f"{gpu.id} is said to hold {held}; its vGPUs {compute} %, {memory} MiB")
    for tenant in tables.tenants.page(_EVERYTHING):
        mine = of_tenant[tenant.id]
        use = (tenant.use.vgpus, tenant.use.compute_percent, tenant.use.memory_mib)
        if use != (len(mine), *_sums(mine)):
            found.append(f"{tenant.id} is said to use {use}, and uses {(len(mine), *_sums(mine))}")
    return found


def _sums(vgpus: list[Vgpu]) -> tuple[int, int]:
    return (
        sum(vgpu.held.compute_percent for vgpu in vgpus),
        sum(vgpu.held.memory_mib for vgpu in vgpus),
    )
