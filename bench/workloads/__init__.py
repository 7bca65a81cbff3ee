"""Every workload, by kind of program. A new one is an entry in its module's WORKLOADS."""

from __future__ import annotations

from gpupool.bench.workloads import copies, events, graphs, launch, memory, modules
from gpupool.bench.workloads.base import Workload

_MODULES = (launch, events, graphs, copies, memory, modules)


def everything() -> dict[str, Workload]:
    """Name to workload, in the order of the table."""
    return {each.name: each for module in _MODULES for each in module.WORKLOADS}
