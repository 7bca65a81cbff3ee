"""A session: one client, its worker, and the states the two go through.

Invariant: a session leaves ENDED never, and every session that has a worker process is in the table
until that process is gone. Nothing here touches a process; `host` drives it.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from gpupool.hostd.core.vgpu import Quota, Seat, SharePolicy


class SessionState(enum.Enum):
    """STARTING: admitted, worker being started.

    RUNNING: worker exists. ENDING: told to stop. ENDED: gone.
    """

    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


_NEXT = {
    SessionState.STARTING: {SessionState.RUNNING, SessionState.ENDED},
    SessionState.RUNNING: {SessionState.ENDING, SessionState.ENDED},
    SessionState.ENDING: {SessionState.ENDED},
    SessionState.ENDED: set(),
}


# May be missing in the record of an older hostd, whose sessions go on.
_ADDED = {"isolation", "client_start_ticks", "client_address", "owner", "client_pid"}
_ADDED |= {"vgpu", "policy", "priority", "seats", "kind", "window_offset", "window_bytes"}


class IllegalTransitionError(RuntimeError):
    """A programming error of hostd: a session was moved where it cannot go."""


def number_of(tenant: str) -> int:
    """Session.tenant_number of that tenant's sessions."""
    return int.from_bytes(hashlib.sha256(tenant.encode()).digest()[:3], "big")


@dataclass(frozen=True, slots=True)
class Session:
    """What hostd remembers of a session; also the content of its state file."""

    id: int
    state: SessionState
    program: str  # comm of the client, as the client told it
    pid: int  # as the kernel told it (unix), else as the client told it
    uid: int  # -1 over TCP
    client_version: str
    transport: str  # "shm", "tcp", "tls", "vsock", "window"
    endpoint: str  # where the client came in: "unix:/run/gpupool/hostd.sock"
    devices: tuple[str, ...]  # UUIDs
    compute_percent: int
    memory_mib: int  # 0: not limited
    since: str  # UTC, ISO 8601
    worker_pid: int = 0  # 0 while STARTING
    worker_start_ticks: int = 0  # field 22 of /proc/PID/stat: tells a reused pid from the worker
    isolation: tuple[str, ...] = ()  # "user 1900000003", "seccomp", "landlock 7", "cgroup"
    client_start_ticks: int = 0  # of `pid`; 0: not known
    client_address: str = ""  # over TCP
    owner: str = ""  # who sees it through NVML (host.owner_of); nobody, in an older record
    client_pid: int = 0  # as the client told it: in its own pid namespace
    vgpu: str = ""  # name of the vGPU that it uses; empty: one of its own
    policy: str = SharePolicy.ELASTIC.value
    priority: int = 0
    kind: str = "cuda"  # or "opengl"
    seats: tuple[Seat, ...] = ()  # in the order of `devices`; none in an older hostd's record
    window_offset: int = 0  # of its piece of its virtual machine's window, in bytes
    window_bytes: int = 0  # of that; 0: it has none

    @property
    def quota(self) -> Quota:
        """Of each vGPU that it uses."""
        policy = SharePolicy(self.policy)
        return Quota(self.compute_percent, self.memory_mib, policy, self.priority)

    def with_quota(self, quota: Quota) -> Session:
        """This session, after its vGPU was resized."""
        return replace(
            self,
            compute_percent=quota.compute_percent,
            memory_mib=quota.memory_mib,
            policy=quota.policy.value,
            priority=quota.priority,
        )

    @property
    def tenant(self) -> str:
        """Who may share memory with whom: the user behind an endpoint, over TCP the address.

        An older hostd's record knows no address.
        """
        return self.owner or f"{self.uid} {self.endpoint}"

    @property
    def tenant_number(self) -> int:
        """24 bits that stand for the tenant, the same after a restart."""
        return number_of(self.tenant)

    def moved(self, state: SessionState) -> Session:
        """This session in `state`. Raises IllegalTransitionError."""
        if state not in _NEXT[self.state]:
            raise IllegalTransitionError(f"session {self.id}: {self.state.value} -> {state.value}")
        return replace(self, state=state)

    def with_worker(self, pid: int, start_ticks: int) -> Session:
        """This session, RUNNING in that process."""
        return replace(
            self.moved(SessionState.RUNNING), worker_pid=pid, worker_start_ticks=start_ticks
        )

    def as_dict(self) -> dict[str, Any]:
        """For the state file and the admin API."""
        content = asdict(self)
        content["state"] = self.state.value
        content["devices"] = list(self.devices)
        content["isolation"] = list(self.isolation)
        content["seats"] = [asdict(seat) for seat in self.seats]
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Session:
        """Reads what as_dict wrote.

        Raises ValueError for anything else; unknown keys are a newer hostd's, ignored.
        """
        try:
            values = {
                field.name: content[field.name]
                for field in fields(cls)
                if field.name in content or field.name not in _ADDED
            }
            values["state"] = SessionState(values["state"])
            values["devices"] = tuple(str(uuid) for uuid in values["devices"])
            values["isolation"] = tuple(str(word) for word in values.get("isolation", ()))
            values["seats"] = tuple(Seat.from_dict(seat) for seat in values.get("seats", ()))
            SharePolicy(values.get("policy", "elastic"))
            for field in fields(cls):
                expected = {"int": int, "str": str}.get(str(field.type))
                value = values.get(field.name, field.default)
                if expected is not None and type(value) is not expected:
                    raise ValueError(f"{field.name} is no {field.type}")
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a session record: {error!r}") from error
        return cls(**values)
