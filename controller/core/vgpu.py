"""A vGPU: a share of one GPU that somebody has asked for, and where it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from gpupool.controller.core.errors import Kind, RefusedError

HIGHEST_PRIORITY = 9
DEFAULT_PRIORITY = 5  # as hostd's
MOST_IN_A_GROUP = 64
MOST_LABELS = 16
MOST_MEMORY_MIB = 1 << 24  # 16 TiB; keeps sums far away from 64 bits
NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


class Policy(str, Enum):
    """elastic: at least its share, more while others leave it. hard: its share and never more."""

    ELASTIC = "elastic"
    HARD = "hard"


class Mode(str, Enum):
    """reserved: holds its share from creation. on-demand: only while a client is connected."""

    RESERVED = "reserved"
    ON_DEMAND = "on-demand"


class State(str, Enum):
    """Where a vGPU stands."""

    IDLE = "idle"  # on-demand and without a client: holds nothing
    PLACED = "placed"  # has its GPU; the node has not said yet that it knows
    READY = "ready"  # the node has it
    LOST = "lost"  # its node is silent
    DELETING = "deleting"  # holds its share until the node says it is gone


class Strategy(str, Enum):
    """binpack: the fullest GPU that fits. spread: the emptiest."""

    BINPACK = "binpack"
    SPREAD = "spread"


@dataclass(frozen=True, slots=True)
class Share:
    """How much of one GPU. memory_mib 0: not limited. compute_percent 0: what others leave."""

    compute_percent: int
    memory_mib: int

    def __post_init__(self) -> None:
        if not 0 <= self.compute_percent <= 100:
            raise RefusedError(
                Kind.INVALID, f"compute_percent is {self.compute_percent}; allowed is 0 to 100."
            )
        if not 0 <= self.memory_mib <= MOST_MEMORY_MIB:
            raise RefusedError(
                Kind.INVALID, f"memory_mib is {self.memory_mib}; allowed is 0 to {MOST_MEMORY_MIB}."
            )


@dataclass(frozen=True, slots=True)
class Selector:
    """Which GPUs are good enough. Empty fields ask for nothing."""

    models: tuple[str, ...] = ()
    gpu_memory_mib: int = 0  # the card has at least this much
    node: str = ""  # the node's name
    labels: Mapping[str, str] = field(default_factory=dict)  # of the node; all of them


@dataclass(frozen=True, slots=True)
class Ask:
    """One vGPU that somebody wants."""

    name: str
    share: Share
    policy: Policy = Policy.ELASTIC
    priority: int = DEFAULT_PRIORITY
    mode: Mode = Mode.RESERVED

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise RefusedError(
                Kind.INVALID,
                f"The name {self.name!r} is not allowed: 1 to 63 of a-z, 0-9, '.', '_', '-', "
                "beginning and ending with a letter or digit.",
            )
        if not 0 <= self.priority <= HIGHEST_PRIORITY:
            raise RefusedError(
                Kind.INVALID, f"priority is {self.priority}; allowed is 0 to {HIGHEST_PRIORITY}."
            )


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that one request wants: all of it, or nothing."""

    tenant_id: str
    asks: tuple[Ask, ...]
    selector: Selector = field(default_factory=Selector)
    strategy: Strategy = Strategy.BINPACK
    same_node: bool = True
    distinct_gpus: bool = True

    def __post_init__(self) -> None:
        if not 1 <= len(self.asks) <= MOST_IN_A_GROUP:
            raise RefusedError(
                Kind.INVALID,
                f"{len(self.asks)} vGPUs are asked for; allowed are 1 to {MOST_IN_A_GROUP}.",
            )
        if len({ask.name for ask in self.asks}) != len(self.asks):
            raise RefusedError(Kind.INVALID, "Two vGPUs of the request have the same name.")
        if len({ask.mode for ask in self.asks}) != 1:
            raise RefusedError(
                Kind.INVALID, "vGPUs of one request are all reserved, or all on-demand."
            )


@dataclass(frozen=True, slots=True)
class Vgpu:
    """A vGPU as it is kept.

    `share` is what it should have, `held` what is set aside on its GPU: more than `share` after it
    was made smaller, until the node says that it has done so; nothing while it is idle.
    """

    id: str
    name: str
    tenant_id: str
    mode: Mode
    policy: Policy
    priority: int
    share: Share
    state: State
    selector: Selector = field(default_factory=Selector)
    strategy: Strategy = Strategy.BINPACK
    held: Share = field(default_factory=lambda: Share(0, 0))
    gpu_id: str | None = None
    gpu_uuid: str | None = None
    node_id: str | None = None
    node_name: str | None = None
    endpoint: str | None = None  # of the node, where clients dial
    group_id: str | None = None
    memory_used_mib: int = 0
    sessions: int = 0
    generation: int = 0  # of its node, when it was last changed
    version: int = 1
    created_ms: int = 0


@dataclass(frozen=True, slots=True)
class VgpuReport:
    """A vGPU that a node has."""

    id: str
    compute_percent: int
    memory_mib: int
    memory_used_mib: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What a PATCH asks for; None leaves it as it is."""

    compute_percent: int | None = None
    memory_mib: int | None = None
    policy: Policy | None = None
    priority: int | None = None
