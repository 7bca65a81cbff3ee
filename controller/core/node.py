"""A node: a machine with GPUs and a hostd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from gpupool.controller.core.gpu import GpuFacts, GpuReport, Pool
from gpupool.controller.core.vgpu import Mode, Policy, Share, VgpuReport


class NodeState(str, Enum):
    """ready: its lease runs. lost: it has been silent for longer than a lease."""

    READY = "ready"
    LOST = "lost"


class Drain(str, Enum):
    """draining: no new clients, those that run are waited for. drained: there are none."""

    NONE = "none"
    DRAINING = "draining"
    DRAINED = "drained"


@dataclass(frozen=True, slots=True)
class Node:
    """A node as it is kept.

    `generation` grows with every change of what the node should have; `applied_generation` is the
    last that the node says it has put into effect. `incarnation` grows with every registration.
    """

    id: str
    name: str
    state: NodeState = NodeState.READY
    cordoned: bool = False  # nothing new is placed there
    labels: Mapping[str, str] = field(default_factory=dict)
    endpoint: str = ""  # where clients dial
    agent_version: str = ""
    incarnation: int = 0
    generation: int = 1
    applied_generation: int = 0
    version: int = 1
    created_ms: int = 0
    heard_ms: int = 0
    sequence: int = 0  # of the last report that was taken
    drain: Drain = Drain.NONE
    drain_deadline_s: int | None = None  # after that, end what still runs; None: wait
    drain_until_ms: int | None = None  # the same, as a date


@dataclass(frozen=True, slots=True)
class Registration:
    """What a hostd says when it comes."""

    name: str
    gpus: tuple[GpuFacts, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    endpoint: str = ""
    agent_version: str = ""


@dataclass(frozen=True, slots=True)
class Registered:
    """What it is told: reports of another incarnation than this one are ignored."""

    node_id: str
    incarnation: int
    generation: int


@dataclass(frozen=True, slots=True)
class SessionReport:
    """One client of a node, and the vGPU it uses on one device. vgpu_id "": of the node's own."""

    id: str
    vgpu_id: str
    gpu_uuid: str
    program: str = ""
    started_ms: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """All that a node has: a whole picture, so any one of them may be lost."""

    node_id: str
    incarnation: int
    sequence: int  # grows by one with each report of an incarnation; the first is 1
    applied_generation: int
    gpus: tuple[GpuReport, ...]
    vgpus: tuple[VgpuReport, ...] = ()
    sessions: tuple[SessionReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """What is new after the report with the number `since`; all else is as it said."""

    node_id: str
    incarnation: int
    sequence: int
    applied_generation: int
    since: int
    gpus: tuple[GpuReport, ...] = ()
    vgpus: tuple[VgpuReport, ...] = ()
    vgpus_gone: tuple[str, ...] = ()
    sessions: tuple[SessionReport, ...] = ()
    sessions_gone: tuple[tuple[str, str], ...] = ()  # id and vGPU


@dataclass(frozen=True, slots=True)
class Reported:
    """accepted False: an old, repeated or foreign report; nothing was done.

    known False: register again. whole True: nothing was done, send a whole picture.
    """

    accepted: bool
    known: bool
    generation: int
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life, with the last report's digest if nothing has changed since."""

    node_id: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Session:
    """A session as it is kept."""

    id: str
    node_id: str
    node_name: str
    vgpu_id: str
    gpu_id: str | None
    tenant_id: str | None
    program: str
    started_ms: int
    confirmed: bool  # the node has reported it
    ending: bool = False  # somebody has asked for that


@dataclass(frozen=True, slots=True)
class DesiredVgpu:
    """A vGPU that a node should have, on that GPU and no other."""

    id: str
    name: str
    tenant_id: str
    gpu_uuid: str
    mode: Mode
    policy: Policy
    priority: int
    share: Share


@dataclass(frozen=True, slots=True)
class DesiredPool:
    """Where a GPU should be. deadline_s: after that, end what still runs; None: wait for ever."""

    gpu_uuid: str
    pool: Pool
    deadline_s: int | None


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """A session that the node should end: its number, and when it began (as the node said)."""

    id: str
    started_ms: int


@dataclass(frozen=True, slots=True)
class Desired:
    """All that a node should have. What it has beyond that has to go."""

    generation: int
    vgpus: tuple[DesiredVgpu, ...]
    pools: tuple[DesiredPool, ...]
    deleting: tuple[str, ...] = ()  # ids: their sessions are to be ended
    ending: tuple[SessionEnd, ...] = ()
    draining: bool = False  # no new sessions
