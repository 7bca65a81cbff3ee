"""What the core needs from the database, and what whoever serves nodes (gRPC) calls.

A change is a function of `Tables` that `Store.change` runs in one serialisable transaction; it may
be run again after a conflict, so it does nothing but read and write its tables. Changes of all
replicas take effect one after the other, so events have the order of what happened.

For the side that talks to hostd, all of it in core/: `fleet`, `reporting` and `claims`:

    registered = store.change(lambda t: fleet.register(t, registration, licence))   # hostd came
    store.beat([Beat(node_id, incarnation), ...])         # every 7.5 s; many nodes in one call
    found = store.read(lambda t: fleet.desired_of(t, node_ids))   # what they should have
    now = store.read(lambda t: t.nodes.generations([node_id]))    # has that changed? cheap
    reported = store.change(lambda t: reporting.report(t, report))  # when something changed
    reported = store.change(lambda t: reporting.changes(t, changes))  # the same, as a difference
    store.use(node_id, [GpuUse(...)])                     # how busy; any time
    store.change(lambda t: claims.claim(t, request, licence))     # a client of an on-demand vGPU
    store.change(lambda t: claims.release(t, node_id, session_id))

- `report` is a whole picture. Send one after registering, after putting a generation into effect,
  and when a session or GPU changes. Repeated, late and reordered ones are told by `sequence`
  (starts at 1 with each registration) and `incarnation`; they change nothing and answer
  `accepted=False`. `known=False`: register again.
- A session counts from the moment hostd calls `claim`: reports that are made later must have it,
  and the claim says the last sequence that was made before (`ClaimRequest.after_sequence`).
- What a node has beyond `desired` has to go. A vGPU that is deleted or made smaller keeps its
  share set aside until a report with `applied_generation` of that change (or later) shows it.
- A `StoreError` with `unsure=True` may have taken effect: all of the above may be called again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gpupool.controller.core.event import AuditEntry, Event
from gpupool.controller.core.gpu import Gpu, GpuUse
from gpupool.controller.core.node import (
    Beat,
    Changes,
    DesiredPool,
    DesiredVgpu,
    Node,
    NodeState,
    Session,
    SessionEnd,
)
from gpupool.controller.core.operation import Operation, OperationState
from gpupool.controller.core.scheduler import Candidate, Shortfall, Wanted
from gpupool.controller.core.tenant import Quota, Tenant, Use
from gpupool.controller.core.token import Token
from gpupool.controller.core.vgpu import Share, Vgpu

if TYPE_CHECKING:
    from gpupool.controller.core.single import Single

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of a list: `limit` rows after the one with the id `after`."""

    limit: int = 100
    after: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered, as it is kept for its idempotency key."""

    status: int
    body: Any
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer and the digest of the request that it belongs to."""

    request_digest: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the whole pool."""

    nodes: dict[str, int]
    gpus: int
    gpus_usable: int
    compute_held_percent: int
    memory_held_mib: int
    vgpus: dict[str, int]
    sessions: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What a node's desired state depends on, of the node itself."""

    incarnation: int
    generation: int
    draining: bool


class Tenants(Protocol):
    """Tenants and what they hold."""

    def get(self, tenant_id: str) -> Tenant | None: ...
    def by_name(self, name: str) -> Tenant | None: ...
    def page(self, page: Page) -> list[Tenant]: ...
    def add(self, tenant: Tenant) -> None:
        """Raises RefusedError where the name is taken."""
        ...

    def set_quota(self, tenant_id: str, quota: Quota) -> None: ...
    def remove(self, tenant_id: str) -> None: ...
    def charge(self, tenant_id: str, use: Use, *, force: bool = False) -> bool:
        """Adds to what it holds, if the quota allows; with `force` in any case."""
        ...

    def refund(self, tenant_id: str, use: Use) -> None: ...


class Tokens(Protocol):
    """Tokens by the digest of their secret."""

    def by_digest(self, digest: str) -> Token | None: ...
    def get(self, token_id: str) -> Token | None: ...
    def page(self, page: Page) -> list[Token]: ...
    def add(self, token: Token, digest: str) -> None: ...
    def remove(self, token_id: str) -> None: ...
    def remove_of(self, tenant_id: str) -> None: ...
    def count(self) -> int: ...


class Nodes(Protocol):
    """Nodes, their leases and generations."""

    def get(self, node_id: str) -> Node | None: ...
    def some(self, node_ids: Collection[str]) -> dict[str, Node]: ...
    def by_name(self, name: str) -> Node | None: ...
    def page(self, page: Page, state: NodeState | None = None) -> list[Node]: ...
    def put(self, node: Node) -> None:
        """Adds it, or writes everything of it except its generation."""
        ...

    def remove(self, node_id: str) -> None: ...
    def set_state(self, node_id: str, state: NodeState) -> None: ...
    def bump(self, node_id: str) -> int:
        """One more generation; the new one."""
        ...

    def applied(self, node_id: str, generation: int) -> None: ...
    def generations(self, node_ids: Collection[str]) -> dict[str, int]: ...
    def standings(self, node_ids: Collection[str]) -> dict[str, Standing]:
        """Of those that there are."""
        ...

    def draining(self) -> list[Node]: ...

    def beats(self) -> dict[str, int]:
        """Of every node that is ready: how often it has been heard."""
        ...

    def start_incarnation(self, node_id: str, incarnation: int) -> None:
        """Reports start again at 1, and one beat."""
        ...

    def took(self, told: Sequence[tuple[Changes, int]]) -> None:
        """The sequence numbers of differences that are newer than the last, and what each node has
        put into effect; they count as beats.
        """
        ...

    def with_open_claims(self, node_ids: Collection[str]) -> set[str]:
        """Those of these with a session that was claimed and not reported yet."""
        ...

    def next_report(self, node_id: str, incarnation: int, sequence: int) -> bool:
        """Takes the sequence number if it is newer than the last; counts as a beat."""
        ...


class Gpus(Protocol):
    """GPUs and their room."""

    def get(self, gpu_id: str) -> Gpu | None: ...
    def page(self, page: Page, node_id: str | None = None) -> list[Gpu]: ...
    def of_node(self, node_id: str) -> list[Gpu]: ...
    def put(self, gpu: Gpu) -> None:
        """Adds it, or writes everything of it except what is held and how busy it is."""
        ...

    def remove_node(self, node_id: str) -> None: ...
    def desired(self, node_ids: Collection[str]) -> dict[str, list[DesiredPool]]:
        """Where these nodes' GPUs should be."""
        ...

    def arrived(self, node_id: str) -> set[str]:
        """UUIDs of the node's that are in the pool they were sent to, while that operation still
        runs.
        """
        ...

    def arriving(self, node_ids: Collection[str]) -> set[str]:
        """Those of these nodes for which `arrived` has any."""
        ...

    def refresh(self, node_id: str) -> None:
        """Works out again which GPUs of the node may be given out, and their room."""
        ...

    def licence(self, gpus: int) -> int:
        """Marks the first so many GPUs as licensed and the others not; how many are beyond."""
        ...

    def candidates(self, wanted: Wanted, limit: int) -> list[Candidate]: ...
    def nodes_with(self, wanted: Wanted, gpus: int, limit: int) -> list[str]:
        """Nodes with at least so many GPUs that fit, the best first."""
        ...

    def shortfalls(self, wanted: Wanted, *, by_node: int = 0) -> list[Shortfall]:
        """Why GPUs were left out; with by_node, for that many nodes one by one."""
        ...

    def hold(self, gpu_id: str, share: Share, *, usable: bool = True) -> bool:
        """Sets a share aside if there is room for it now. `usable` False: on any GPU."""
        ...

    def unhold(self, gpu_id: str, share: Share) -> None: ...


class Vgpus(Protocol):
    """vGPUs."""

    def get(self, vgpu_id: str) -> Vgpu | None: ...
    def by_name(self, tenant_id: str, name: str) -> Vgpu | None: ...
    def page(
        self, page: Page, tenant_id: str | None = None, node_id: str | None = None
    ) -> list[Vgpu]: ...
    def of_node(self, node_id: str) -> list[Vgpu]: ...
    def desired(self, node_ids: Collection[str]) -> dict[str, tuple[list[DesiredVgpu], list[str]]]:
        """What each of these nodes should have, and ids of those that are being deleted: asked for
        with every change, so no more than that is read.
        """
        ...

    def unsettled(self, node_ids: Collection[str], named: Collection[str]) -> list[Vgpu]:
        """Of these nodes: the named ones, and those that are not ready or hold another share than
        theirs.
        """
        ...

    def add(self, vgpu: Vgpu) -> None:
        """Raises RefusedError where the tenant has one of this name."""
        ...

    def put(self, vgpu: Vgpu) -> None:
        """Writes everything that can change, with the next version."""
        ...

    def set_ready(self, vgpu_ids: Sequence[str]) -> None:
        """Their nodes have them, and nothing else of them is new."""
        ...

    def set_used(self, memory_used_mib: Mapping[str, int]) -> None: ...
    def remove(self, vgpu_id: str) -> None: ...


class Sessions(Protocol):
    """Sessions: what clients run where."""

    def of_node(self, node_id: str) -> list[Session]: ...
    def of_vgpu(self, vgpu_id: str) -> list[Session]: ...
    def page(self, page: Page, tenant_id: str | None = None) -> list[Session]: ...
    def put(self, session: Session, after_sequence: int = 0) -> None: ...
    def remove(self, session: Session) -> None: ...
    def named(self, node_id: str, session_id: str) -> list[Session]:
        """Its rows, one for each vGPU."""
        ...

    def set_ending(self, session: Session) -> None: ...
    def ending(self, node_ids: Collection[str]) -> dict[str, list[SessionEnd]]:
        """Of these nodes: those that somebody ends."""
        ...

    def claimed_after(self, session: Session) -> int:
        """The last report that was made before it was claimed."""
        ...


class Operations(Protocol):
    """Operations."""

    def get(self, operation_id: str) -> Operation | None: ...
    def page(self, page: Page, tenant_id: str | None = None) -> list[Operation]: ...
    def running(self, subject: str) -> list[Operation]: ...
    def running_any(self, subjects: Collection[str]) -> list[Operation]:
        """Those of all of these."""
        ...

    def add(self, operation: Operation) -> None: ...
    def end(self, operation_id: str, state: OperationState, message: str) -> None: ...


class Journal(Protocol):
    """Events, the audit log, and answers to repeated requests."""

    def emit(self, event: Event) -> None: ...
    def events(self, after: int, limit: int, tenant_id: str | None = None) -> list[Event]: ...
    def span(self) -> tuple[int, int]:
        """Numbers of the oldest and the newest event that are kept; (0, 0) where none is."""
        ...

    def audit(self, entry: AuditEntry) -> None: ...
    def audit_page(self, after: int, limit: int) -> list[AuditEntry]: ...
    def answer(self, owner: str, key: str) -> KeptAnswer | None: ...
    def keep_answer(self, owner: str, key: str, kept: KeptAnswer) -> None: ...
    def forget(self, events_before_ms: int, audit_before_ms: int, answers_before_ms: int) -> int:
        """Removes what is too old; how many rows."""
        ...


class Tables(Protocol):
    """All tables, within one transaction."""

    @property
    def now_ms(self) -> int:
        """The time at which the transaction began, in milliseconds since 1970."""
        ...

    def totals(self) -> Totals:
        """Sums over everything, for the metrics."""
        ...

    @property
    def tenants(self) -> Tenants: ...
    @property
    def tokens(self) -> Tokens: ...
    @property
    def nodes(self) -> Nodes: ...
    @property
    def gpus(self) -> Gpus: ...
    @property
    def vgpus(self) -> Vgpus: ...
    @property
    def sessions(self) -> Sessions: ...
    @property
    def operations(self) -> Operations: ...
    @property
    def journal(self) -> Journal: ...


class Store(Protocol):
    """The database. Everything here may raise StoreError."""

    def read(self, work: Callable[[Tables], T]) -> T:
        """Runs it on one consistent picture; nothing may be written."""
        ...

    def change(self, work: Callable[[Tables], T]) -> T:
        """Runs it in one serialisable transaction, again after a conflict, a bounded number of
        times. What `work` raises undoes everything.
        """
        ...

    def allocate(self, one: Single[T]) -> T:
        """As `change(one.change)`; a database may do it in one statement instead."""
        ...

    def beat(self, beats: Sequence[Beat]) -> set[str]:
        """Writes signs of life, past all changes; ids of the nodes that are known so."""
        ...

    def use(self, node_id: str, uses: Sequence[GpuUse]) -> None:
        """Writes how busy GPUs are."""
        ...
