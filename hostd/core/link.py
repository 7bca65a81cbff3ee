"""What hostd and the controller tell each other, as values. The wire form is
wire/proto/gpupool/v1/node.proto; `adapters/link_messages.py` translates.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpupool.hostd.core.vgpu import Quota, SharePolicy


class LinkError(RuntimeError):
    """The controller did not answer, or said no. The text says which."""


class GpuPlace(enum.Enum):
    """The pool of a GPU, as the controller knows it."""

    POOLED = "pooled"
    DRAINING = "draining"
    NATIVE = "native"


@dataclass(frozen=True, slots=True)
class DesiredVgpu:
    """A vGPU that this node should have, on that GPU and no other."""

    id: str  # the controller's
    name: str
    tenant: str  # the controller's id of it
    tenant_name: str
    gpu: str  # UUID
    on_demand: bool  # every session on it has to be claimed
    quota: Quota

    def as_dict(self) -> dict[str, Any]:
        """For the state file."""
        quota = self.quota
        return {
            "id": self.id,
            "name": self.name,
            "tenant": self.tenant,
            "tenant_name": self.tenant_name,
            "gpu": self.gpu,
            "on_demand": self.on_demand,
            "compute_percent": quota.compute_percent,
            "memory_mib": quota.memory_mib,
            "policy": quota.policy.value,
            "priority": quota.priority,
        }

    @classmethod
    def from_dict(cls, content: Any) -> DesiredVgpu:
        """Reads what as_dict wrote. Raises ValueError for anything else."""
        try:
            texts = [content[key] for key in ("id", "name", "tenant", "tenant_name", "gpu")]
            numbers = [content[key] for key in ("compute_percent", "memory_mib", "priority")]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError("a text is none")
            if not all(type(number) is int for number in numbers):
                raise ValueError("a number is none")
            quota = Quota(numbers[0], numbers[1], SharePolicy(content["policy"]), numbers[2])
            on_demand = bool(content["on_demand"])
            return cls(texts[0], texts[1], texts[2], texts[3], texts[4], on_demand, quota)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no record of a vGPU: {error!r}") from error


@dataclass(frozen=True, slots=True)
class DesiredPool:
    """Where a GPU should be. deadline_s: after that, sessions are ended; None: never."""

    gpu: str
    place: GpuPlace
    deadline_s: int | None = None


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """A session that somebody ends: as it was reported, since numbers begin anew with a boot."""

    id: str
    started_ms: int


@dataclass(frozen=True, slots=True)
class Desired:
    """All that this node should have."""

    generation: int = 0
    vgpus: tuple[DesiredVgpu, ...] = ()
    pools: tuple[DesiredPool, ...] = ()
    deleting: tuple[str, ...] = ()  # vGPUs whose sessions are to be ended
    ending: tuple[SessionEnd, ...] = ()
    draining: bool = False  # no new sessions

    def as_dict(self) -> dict[str, Any]:
        """For the state file: what has to be known while the controller is away."""
        return {
            "generation": self.generation,
            "vgpus": [one.as_dict() for one in self.vgpus],
            "draining": self.draining,
        }

    @classmethod
    def from_dict(cls, content: Any) -> Desired:
        """Reads what as_dict wrote. Raises ValueError for anything else."""
        try:
            vgpus = tuple(DesiredVgpu.from_dict(one) for one in content["vgpus"])
            draining = content.get("draining", False) is True  # an older hostd wrote none
            return cls(int(content["generation"]), vgpus, draining=draining)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no record of a desired state: {error!r}") from error


@dataclass(frozen=True, slots=True)
class NodeGpu:
    """A GPU of this node and the pool that it is in; also of those that are not given out."""

    uuid: str
    model: str
    memory_mib: int  # that programs can have
    position: int
    place: GpuPlace = GpuPlace.POOLED
    error: str = ""  # why the pool that was asked for was not reached


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a node says of itself when it comes."""

    name: str
    version: str
    endpoint: str
    labels: Mapping[str, str]
    gpus: tuple[NodeGpu, ...]
    instance: str


@dataclass(frozen=True, slots=True)
class Registration:
    """What it is told."""

    node_id: str
    incarnation: int
    beat_s: float


@dataclass(frozen=True, slots=True)
class GpuState:
    """A GPU in a report."""

    uuid: str
    place: GpuPlace = GpuPlace.POOLED
    healthy: bool = True
    overhead_mib: int = 0
    local_compute_percent: int = 0
    local_memory_mib: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """How busy a GPU is."""

    uuid: str
    load_percent: int
    memory_used_mib: int


@dataclass(frozen=True, slots=True)
class VgpuState:
    """A vGPU of the controller in a report."""

    id: str
    compute_percent: int
    memory_mib: int
    memory_used_mib: int = 0


@dataclass(frozen=True, slots=True)
class SessionFact:
    """A session on one vGPU in a report; vgpu "": one of the node's own."""

    id: str
    vgpu: str
    gpu: str
    program: str = ""
    started_ms: int = 0


@dataclass(frozen=True, slots=True)
class Picture:
    """All that this node has."""

    applied_generation: int
    gpus: tuple[GpuState, ...]
    vgpus: tuple[VgpuState, ...] = ()
    sessions: tuple[SessionFact, ...] = ()
    # Ids of vGPUs that are not as the controller wants them, there or not, or being deleted.
    unsettled: frozenset[str] = frozenset()


class ClaimOutcome(enum.Enum):
    """What became of a claim."""

    GRANTED = "granted"
    WAIT = "wait"  # no room now
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class ClaimAnswer:
    """The controller's answer to a claim."""

    outcome: ClaimOutcome
    text: str = ""
    vgpu: DesiredVgpu | None = None  # where granted
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """A client of this node wants a vGPU of the controller."""

    id: str
    vgpu: str  # name or id
    tenant: str  # of the endpoint it came through; empty: not known
    program: str = ""
    other_gpus: tuple[str, ...] = ()  # UUIDs: where the client's other vGPUs are


class LinkStore(Protocol):
    """What survives a restart of hostd while the controller is away."""

    def load(self) -> Desired | None:
        """What was last put into effect; None, and reported, where it cannot be read."""
        ...

    def save(self, desired: Desired) -> None:
        """Replaces it, atomically and for good. Raises PortError."""
        ...


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """How the connection stands, for `gpupool status`."""

    url: str
    node: str
    connected: bool = False
    problem: str = ""  # the last one, while not connected
    generation: int = 0
    not_done: Mapping[str, str] = field(default_factory=dict)  # by vGPU: why not
    draining: bool = False  # it lets nobody in
