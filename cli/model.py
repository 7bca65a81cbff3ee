"""The nouns of the command line, as both backends give them and as `--json` prints them.

None and empty texts mean: this backend does not know.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Vgpu:
    """An allocation on one GPU."""

    id: str
    name: str
    mode: str  # reserved, on-demand
    policy: str  # elastic, hard
    compute_percent: int  # 0: none of its own
    memory_mib: int  # 0: not limited
    priority: int
    state: str
    gpu: str = ""  # UUID of the GPU that it is on now
    node: str = ""
    tenant: str = ""
    memory_used_mib: int | None = None
    sessions: int | None = None  # how many use it now
    users: tuple[
        int, ...
    ] = ()  # uids that may use it, on a standalone hostd; empty: whoever may come


@dataclass(frozen=True, slots=True)
class Waiting:
    """A client that waits for room on a GPU."""

    position: int  # 1: the next
    program: str
    pid: int
    vgpu: str  # empty: one of its own
    compute_percent: int
    memory_mib: int
    waited_s: int


@dataclass(frozen=True, slots=True)
class Quota:
    """What a vGPU may use, where it was said; None: as it is, or the default."""

    compute_percent: int | None = None
    memory_mib: int | None = None
    policy: str | None = None
    priority: int | None = None

    @property
    def said(self) -> dict[str, object]:
        """What was said, by its name in requests, which hostd and controller share."""
        given = {
            "compute_percent": self.compute_percent,
            "memory_mib": self.memory_mib,
            "policy": self.policy,
            "priority": self.priority,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where vGPUs may go. Empty fields ask for nothing."""

    gpu: str = ""  # UUID
    node: str = ""
    models: tuple[str, ...] = ()
    gpu_memory_mib: int = 0
    labels: dict[str, str] = field(default_factory=dict)  # of the node
    strategy: str = ""
    same_node: bool | None = None  # of several vGPUs; None: the controller's default
    distinct_gpus: bool | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """vGPUs that are to be made: all of them, or none."""

    names: tuple[str, ...]
    quota: Quota
    mode: str
    placement: Placement = field(default_factory=Placement)
    tenant: str = ""
    users: tuple[int, ...] = ()  # uids that may use them, on a standalone hostd


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card."""

    uuid: str
    model: str
    memory_mib: int
    pool: str
    healthy: bool = True
    node: str = ""
    compute_free_percent: int | None = None
    memory_free_mib: int | None = None
    memory_used_mib: int | None = None
    load_percent: int | None = None
    sessions: int | None = None
    operation: str = ""  # the one that is moving it
    note: str = ""


@dataclass(frozen=True, slots=True)
class PoolMove:
    """A switch of one GPU to the other pool."""

    gpu: str  # UUID
    pool: str  # pooled, native
    native_for: str = ""  # container, vfio
    deadline_s: int | None = None  # then sessions are ended; None: wait for them
    force: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with a hostd."""

    id: str
    name: str
    state: str
    cordoned: bool
    gpus: int | None
    endpoint: str
    version: str
    labels: dict[str, str]
    heard: str  # UTC, ISO 8601
    drain: str = "none"  # or draining, drained


@dataclass(frozen=True, slots=True)
class Session:
    """One client program."""

    id: str
    program: str
    vgpu: str
    gpu: str
    node: str
    since: str  # UTC, ISO 8601
    state: str
    tenant: str = ""
    pid: int | None = None
    kind: str = ""  # cuda, opengl; empty: the controller does not tell


@dataclass(frozen=True, slots=True)
class Operation:
    """A long action."""

    id: str
    kind: str
    target: str
    state: str  # running; succeeded, failed, cancelled
    percent: int
    progress: str  # in words
    goal: str = ""
    error: str = ""
    started: str = ""
    ended: str = ""

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.state == "running"


@dataclass(frozen=True, slots=True)
class TenantQuota:
    """How much a tenant may hold; None: no limit."""

    vgpus: int | None = None
    compute_percent: int | None = None  # of all its vGPUs together
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True)
class TenantUse:
    """How much it holds."""

    vgpus: int
    compute_percent: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class Tenant:
    """One user of a controller's pool."""

    id: str
    name: str
    quota: TenantQuota
    use: TenantUse


@dataclass(frozen=True, slots=True)
class Token:
    """A right to ask the controller, without its secret."""

    id: str
    name: str
    role: str
    tenant: str
    node: str
    created: str
    expires: str  # empty: never


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that has just been made; its secret is shown once."""

    token: Token
    secret: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""

    number: int
    time: str
    kind: str
    subject: str
    message: str
    node: str = ""
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class VmRight:
    """What a virtual machine may have on one host, all its vGPUs together."""

    uuid: str
    name: str = ""
    tenant: str = ""
    compute_percent: int = 0  # 0: only vGPUs without a share of their own
    memory_mib: int = 0  # 0: not limited
    vgpus: int = 1
    cid: int = 0  # the one that it must have; 0: any
    configured: bool = False  # stands in hostd's configuration


@dataclass(frozen=True, slots=True)
class Vm:
    """A virtual machine that was prepared for its start, and has not been released."""

    uuid: str
    name: str
    tenant: str
    state: str
    since: str
    cid: int  # 0: not known yet
    relay: bool
    window_mib: int  # 0: none
    vgpus: tuple[str, ...]  # names
    sessions: tuple[int, ...]
    health: str  # as its agent says
    health_detail: str = ""


@dataclass(frozen=True, slots=True)
class KataDevice:
    """What one Kata container may have, and who has it. Patterns are the shell's; empty: all."""

    name: str
    compute_percent: int = 0
    memory_mib: int = 0
    count: int = 1  # vGPUs of this size
    mode: str = "reserved"
    policy: str = "elastic"
    tenant: str = ""
    namespace: str = ""
    pod: str = ""
    container: str = ""
    used_by: str = ""  # namespace/pod/container, or a container's id
    sandbox: str = ""  # that one's
    hypervisor: str = ""
    vgpus: tuple[str, ...] = ()  # names of those that it has now
    sessions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class KataHost:
    """The Kata devices of one host."""

    folder: str  # of each one's folder
    devices: tuple[KataDevice, ...]


@dataclass(frozen=True, slots=True)
class VmHost:
    """The virtual machines of one host."""

    folder: str  # of each one's folder
    relay: bool  # each has a vsock device of ours
    vms: tuple[Vm, ...]
    rights: tuple[VmRight, ...]
