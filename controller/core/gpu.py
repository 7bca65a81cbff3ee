"""A GPU as the controller knows it: what it has, what is held, and whether it may be given out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

FULL_PERCENT = 100


class Pool(str, Enum):
    """Where a GPU is. A node moves it; the controller says where it should be."""

    POOLED = "pooled"
    DRAINING = "draining"
    NATIVE = "native"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card of one node.

    `held` is what the controller has given out, `local` what the node gave to programs that came
    to it without the controller. `overhead_mib` is what the driver itself takes of the memory.
    """

    id: str
    uuid: str
    node_id: str
    node_name: str
    position: int
    model: str
    memory_mib: int
    overhead_mib: int = 0
    compute_held_percent: int = 0
    memory_held_mib: int = 0
    local_compute_percent: int = 0
    local_memory_mib: int = 0
    pool: Pool = Pool.POOLED
    pool_wanted: Pool = Pool.POOLED
    pool_deadline_s: int | None = None
    healthy: bool = True
    present: bool = True
    licensed: bool = True
    usable: bool = True
    load_percent: int = 0
    memory_used_mib: int = 0
    version: int = 1

    @property
    def compute_free_percent(self) -> int:
        """What may still be given out; below 0 while a node has given out more by itself."""
        return FULL_PERCENT - self.compute_held_percent - self.local_compute_percent

    @property
    def memory_free_mib(self) -> int:
        """What may still be given out."""
        return self.memory_mib - self.overhead_mib - self.memory_held_mib - self.local_memory_mib


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What a node says of a card when it registers."""

    uuid: str
    position: int
    model: str
    memory_mib: int
    pool: Pool = Pool.POOLED
    healthy: bool = True


@dataclass(frozen=True, slots=True)
class GpuReport:
    """What a node says of a card in each report."""

    uuid: str
    pool: Pool = Pool.POOLED
    healthy: bool = True
    overhead_mib: int = 0
    local_compute_percent: int = 0
    local_memory_mib: int = 0
    pool_error: str = ""  # why the switch that was asked for failed


@dataclass(frozen=True, slots=True)
class GpuUse:
    """How busy a card is; told often, and never a reason to change anything."""

    uuid: str
    load_percent: int
    memory_used_mib: int
