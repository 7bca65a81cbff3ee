"""Every workload, by kind of program. A new one is an entry in its module's WORKLOADS."""

from __future__ import annotations

from gpupool.bench.workloads import (
    clients,
    copies,
    cupy_basic,
    events,
    graphs,
    jax_basic,
    launch,
    memory,
    modules,
    torch_basic,
    torch_compiled,
    torch_language,
    torch_libraries,
    torch_vision,
)
from gpupool.bench.workloads.base import Workload

_MODULES = (
    *(launch, events, graphs, copies, memory, modules),
    *(torch_basic, torch_compiled, torch_vision, torch_language, torch_libraries),
    *(jax_basic, cupy_basic, clients),
)


def everything() -> dict[str, Workload]:
    """Name to workload, in the order of the table."""
    return {each.name: each for module in _MODULES for each in module.WORKLOADS}
