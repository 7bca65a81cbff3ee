"""What the nouns ask for, whoever answers: a standalone hostd, or the controller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from gpupool.cli.model import (
    Event,
    Gpu,
    KataDevice,
    KataHost,
    NewToken,
    Node,
    Operation,
    PoolMove,
    Quota,
    Session,
    Tenant,
    TenantQuota,
    Token,
    Vgpu,
    VmHost,
    VmRight,
    Waiting,
    Wanted,
)

FAILED, WRONG, REFUSED = 1, 2, 3


class BackendError(RuntimeError):
    """It could not be asked, or failed. The text says what was asked, what is wrong, what to do."""

    exit_code = FAILED


class RefusedError(BackendError):
    """It was asked and said no: no room, a quota, in use, no such thing, not allowed."""

    exit_code = REFUSED


class UsageError(BackendError):
    """The command line or cli.toml is wrong."""

    exit_code = WRONG


class Backend(Protocol):
    """One of the two. Everything here raises BackendError."""

    @property
    def where(self) -> str:
        """Who answers, for people: `hostd at /run/gpupool/admin.sock`."""
        ...

    def vgpus(self) -> list[Vgpu]: ...

    def vgpu(self, name: str) -> Vgpu: ...

    def waiting(self) -> list[Waiting]:
        """Clients in the queue of a standalone hostd."""
        ...

    def create_vgpus(self, wanted: Wanted) -> list[Vgpu]: ...

    def resize_vgpu(self, name: str, quota: Quota) -> Vgpu: ...

    def delete_vgpu(self, name: str, end_sessions: bool) -> Operation | None:
        """The operation that goes on; None: it is gone already."""
        ...

    def gpus(self) -> list[Gpu]: ...

    def move_gpu(self, move: PoolMove) -> Operation: ...

    def sessions(self) -> list[Session]: ...

    def end_session(self, session: str, kill: bool) -> Operation | None:
        """The operation that goes on; None: its worker has been told."""
        ...

    def operations(self) -> list[Operation]: ...

    def operation(self, number: str) -> Operation: ...

    def cancel_operation(self, number: str) -> Operation: ...


class Local(Backend, Protocol):
    """What only a hostd has."""

    def vm_host(self) -> VmHost: ...

    def allow_vm(self, right: VmRight) -> None:
        """Makes or replaces a right."""
        ...

    def disallow_vm(self, uuid: str) -> None: ...

    def prepare_vm(
        self, uuid: str, name: str, vgpus: list[dict[str, object]], window_mib: int, cid: int
    ) -> None:
        """What the hook does before a domain starts, for one that runs."""
        ...

    def started_vm(self, uuid: str, cid: int) -> None: ...

    def change_vm(self, uuid: str, vgpus: list[dict[str, object]]) -> None: ...

    def release_vm(self, uuid: str) -> None:
        """Its sessions end."""
        ...

    def kata_host(self) -> KataHost: ...

    def allow_kata(self, device: KataDevice) -> None:
        """Makes or replaces it."""
        ...

    def disallow_kata(self, name: str) -> None: ...

    def release_kata(self, name: str) -> bool:
        """Takes it from its container; False: none has it."""
        ...


class Central(Backend, Protocol):
    """What only a controller has."""

    def places(self, name: str) -> list[str]:
        """Endpoints where clients of a vGPU dial, the best first."""
        ...

    def nodes(self) -> list[Node]: ...

    def cordon_node(self, name: str, cordoned: bool) -> None:
        """Whether new vGPUs are kept away from it."""
        ...

    def drain_node(self, name: str, deadline_s: int | None) -> Operation:
        """Empties it; its sessions are ended after the deadline, without one waited for."""
        ...

    def undrain_node(self, name: str) -> None: ...

    def remove_node(self, name: str) -> None:
        """Forgets a lost one, and every vGPU on it."""
        ...

    def tenants(self) -> list[Tenant]: ...

    def create_tenant(self, name: str, quota: TenantQuota) -> Tenant: ...

    def set_quota(self, name: str, quota: TenantQuota) -> Tenant: ...

    def delete_tenant(self, name: str) -> None: ...

    def tokens(self) -> list[Token]: ...

    def create_token(self, name: str, role: str, bound_to: str, days: int | None) -> NewToken:
        """`bound_to`: the tenant of a tenant's token, the node of a node's."""
        ...

    def revoke_token(self, token: str) -> None: ...

    def events(self, after: int | None, follow: bool) -> Iterator[Event]:
        """What is kept since number `after`; with `follow` also what comes, until interrupted."""
        ...
