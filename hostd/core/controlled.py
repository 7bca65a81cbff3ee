"""The vGPUs that the controller wants on this node: put into effect, kept, and reported.

Each is a reserved one here, on the GPU that the controller chose; `Vgpu.origin` says that it is the
controller's. What cannot be done (no room yet: a program of the node's own is in the way) is tried
again with every change, and reported as not there until it is.

While the controller is away nothing here changes: what was granted goes on, also after a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial

from gpupool.hostd.core.host import Host
from gpupool.hostd.core.link import (
    Claim,
    ClaimAnswer,
    Desired,
    DesiredVgpu,
    GpuState,
    LinkStore,
    NodeGpu,
    Picture,
    SessionFact,
    VgpuState,
)
from gpupool.hostd.core.placement import MIB
from gpupool.hostd.core.ports import Clock, PortError
from gpupool.hostd.core.reconcile import Held, Steps, reconcile
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.vgpu import Vgpu, VgpuMode, check_name
from gpupool.hostd.core.vgpus import VgpuError, Vgpus
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")
_DRAINING = (
    "this host is being drained by its controller and takes no new programs; use another one, or "
    "try again later (`gpupool node list`)"
)


@dataclass(frozen=True, slots=True)
class Found:
    """A vGPU of the controller's that a client may use by this local name, now."""

    name: str


@dataclass(frozen=True, slots=True)
class Missing:
    """The controller wants it here, but it is not there yet."""

    text: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Only the controller knows."""


@dataclass(frozen=True, slots=True)
class Mistaken:
    """Never, as it was asked for."""

    text: str


class Controlled:
    """Those of one host. Used from the event loop only."""

    def __init__(
        self,
        host: Host,
        vgpus: Vgpus,
        store: LinkStore,
        clock: Clock,
        gpus: Callable[[], tuple[NodeGpu, ...]],
        end_grace_s: float = 10,
    ) -> None:
        self._host = host
        self._vgpus = vgpus
        self._store = store
        self._clock = clock
        self._gpus = gpus
        self._end_grace_s = end_grace_s
        self._desired = store.load() or Desired()
        self._known = False  # this incarnation has been told what it should have
        self._least = 0  # a Desired older than that does not know of all claims
        self._claims: dict[str, tuple[Claim, DesiredVgpu]] = {}
        self._ending: set[int] = set()
        self._orphans: frozenset[str] = frozenset()
        self._running = False
        self.not_done: dict[str, str] = {}  # by vGPU: why not
        host.closed = _DRAINING if self._desired.draining else ""

    @property
    def generation(self) -> int:
        """Of what is wanted here."""
        return self._desired.generation

    @property
    def draining(self) -> bool:
        """Whether no client may come."""
        return self._desired.draining

    @property
    def known(self) -> bool:
        """Whether there is anything to report about in this incarnation."""
        return self._known

    def begin(self) -> None:
        """A new incarnation: generations may begin anew."""
        self._known = False
        self._least = 0

    def resume(self) -> None:
        """A new connection: what it says first is the newest there is."""
        self._least = 0

    def apply(self, desired: Desired) -> bool:
        """Puts it into effect, as far as that is possible now. False: it is an old one. Raises
        PortError where it cannot be written down; nothing has changed then.
        """
        if desired.generation < self._least:
            return False
        self._keep(desired)
        self._least = desired.generation
        self._known = True
        self.run()
        return True

    def _keep(self, desired: Desired) -> None:
        if desired.as_dict() != self._desired.as_dict():
            self._store.save(desired)
        self._desired = desired
        self._host.closed = _DRAINING if desired.draining else ""

    def run(self) -> None:
        """Does what is left to do. Called with every change; only the first in a row runs."""
        if self._running or not self._known:
            return
        self._running = True  # what is done here is a change, too
        try:
            self._do(reconcile(self._desired, self._held()))
        finally:
            self._running = False

    def _held(self) -> list[Held]:
        return [
            Held(vgpu.origin, vgpu.gpu, vgpu.quota, self._vgpus.facts(vgpu).sessions)
            for vgpu in self._mine().values()
        ]

    def _mine(self) -> dict[str, Vgpu]:
        """By the controller's id."""
        table = self._host.allocations.table
        return {vgpu.origin: vgpu for vgpu in table.named if vgpu.origin}

    def _do(self, steps: Steps) -> None:
        self._orphans = steps.orphans
        self.not_done = {}
        mine = self._mine()
        for session_id in (*steps.end, *self._ended_by_hand()):
            self._end(session_id)
        for origin in steps.drop:
            if not self._claimed(origin):
                self._try(origin, partial(self._vgpus.delete, mine[origin].id))
        for step in steps.resize:
            self._try(step.id, partial(self._vgpus.resize, mine[step.id].id, step.quota))
        for wanted in steps.place:
            self._try(wanted.id, partial(self._place, wanted))

    def _try(self, origin: str, action: Callable[[], object]) -> None:
        try:
            action()
        except (VgpuError, PortError) as error:
            self.not_done[origin] = str(error)
            log.warning("vGPU of the controller", extra=fields({"id": origin, "error": str(error)}))

    def _place(self, wanted: DesiredVgpu) -> None:
        taken = self._host.allocations.table.find(wanted.name)
        plain = taken is None and not check_name(wanted.name)
        self._vgpus.create(
            Vgpu(
                0,
                wanted.quota,
                # Another tenant's, or one of the node's own, may have the name.
                wanted.name if plain else wanted.id,
                VgpuMode.RESERVED,
                gpu=wanted.gpu,
                origin=wanted.id,
            )
        )

    def _ended_by_hand(self) -> list[int]:
        ending = {(one.id, one.started_ms) for one in self._desired.ending}
        return [
            one.id
            for one in (self._host.sessions if ending else ())
            if (str(one.id), _ms(one.since)) in ending
        ]

    def _end(self, session_id: int) -> None:
        if session_id in self._ending:
            return
        self._ending.add(session_id)
        self._host.end(session_id)
        self._clock.later(self._end_grace_s, partial(self._end_by_force, session_id))

    def _end_by_force(self, session_id: int) -> None:
        self._ending.discard(session_id)
        self._host.end(session_id, kill=True)  # False where it is gone

    # What clients may use.

    def is_local(self, name: str) -> bool:
        """Whether this is one of the node's own, of which the controller knows nothing."""
        found = self._host.allocations.table.find(name)
        return found is not None and not found.origin

    def look_up(self, name: str, tenant: str) -> Found | Missing | Ask | Mistaken:
        """The vGPU that a client of that tenant means; tenant "": of any."""
        found = self._meant(name, tenant)
        if len(found) > 1:
            return Mistaken(
                f"{len(found)} tenants have a vGPU {name} on this node; say its id: "
                + " or ".join(one.id for one in found)
            )
        if not found or found[0].on_demand:
            return Ask()
        return self._local(found[0])

    def gpus_of(self, names: Collection[str], tenant: str) -> tuple[str, ...]:
        """UUIDs of the GPUs where the vGPUs of these names are now, as far as they have a place."""
        table = self._host.allocations.table
        own = (table.find(name) for name in names if self.is_local(name))
        places = (table.place_of(one.id) for one in own if one is not None)
        local = {place.gpu for place in places if place is not None}
        return tuple(sorted(local.union(*(self._gpus_of(name, tenant) for name in names))))

    def _gpus_of(self, name: str, tenant: str) -> set[str]:
        return {one.gpu for one in self._meant(name, tenant)}

    def _meant(self, name: str, tenant: str) -> list[DesiredVgpu]:
        return [
            one
            for one in self._desired.vgpus
            if name in (one.id, one.name) and tenant in ("", one.tenant, one.tenant_name)
        ]

    def _local(self, wanted: DesiredVgpu) -> Found | Missing:
        mine = self._mine().get(wanted.id)
        if mine is not None and mine.gpu == wanted.gpu and wanted.id not in self._orphans:
            return Found(mine.name)
        why = self.not_done.get(wanted.id, "it is being set up")
        return Missing(f"vGPU {wanted.name} is not there yet: {why}")

    def granted(self, claim: Claim, answer: ClaimAnswer) -> Found | Missing:
        """The controller said yes. `closed` has to follow. Raises PortError where it cannot be
        written down.
        """
        if answer.vgpu is None:
            raise ValueError("a granted claim without a vGPU")
        wanted = answer.vgpu
        others = tuple(one for one in self._desired.vgpus if one.id != wanted.id)
        self._keep(replace(self._desired, vgpus=(*others, wanted)))
        self._least = max(self._least, answer.generation)
        self._claims[claim.id] = (claim, wanted)
        self.run()
        return self._local(wanted)

    def closed(self, claim_id: str) -> None:
        """Its client has a session, or has gone: the next report says which."""
        self._claims.pop(claim_id, None)

    def _claimed(self, origin: str) -> bool:
        return any(wanted.id == origin for _, wanted in self._claims.values())

    # What the controller is told.

    def picture(self) -> Picture:
        """All that this node has."""
        return Picture(
            self._desired.generation if self._known else 0,
            tuple(self._gpu(one) for one in self._gpus()),
            tuple(self._vgpu(vgpu) for vgpu in self._mine().values()),
            tuple(self._sessions()),
            self._unsettled(),
        )

    def _unsettled(self) -> frozenset[str]:
        mine = self._mine()
        missing = {
            one.id
            for one in self._desired.vgpus
            if one.id not in mine or mine[one.id].quota != one.quota or mine[one.id].gpu != one.gpu
        }
        return frozenset(missing.union(self._desired.deleting))

    def _gpu(self, node: NodeGpu) -> GpuState:
        uuid = node.uuid
        promised = self._host.allocations.table.promised(uuid)
        room = next((one for one in self._host.rooms() if one.gpu == uuid), None)
        overhead_mib = 0
        if room is not None:
            overhead_mib = max(0, node.memory_mib - promised.memory_mib - room.memory_mib)
        counted = [
            vgpu.quota
            for origin, vgpu in self._mine().items()
            if vgpu.gpu == uuid and origin not in self._orphans and self._wants(origin)
        ]
        return GpuState(
            uuid,
            node.place,
            overhead_mib=overhead_mib,
            local_compute_percent=promised.compute_percent
            - sum(quota.compute_percent for quota in counted),
            local_memory_mib=promised.memory_mib - sum(quota.memory_mib for quota in counted),
            error=node.error,
        )

    def _wants(self, origin: str) -> bool:
        return any(one.id == origin for one in self._desired.vgpus)

    def _vgpu(self, vgpu: Vgpu) -> VgpuState:
        used = self._host.allocations.use(vgpu.id)
        used_mib = -(-used.memory_bytes // MIB)
        return VgpuState(vgpu.origin, vgpu.quota.compute_percent, vgpu.quota.memory_mib, used_mib)

    def _sessions(self) -> list[SessionFact]:
        origins = {vgpu.id: origin for origin, vgpu in self._mine().items()}
        facts = []
        for session in self._host.sessions:
            facts += _facts(session, origins)
        facts += [
            SessionFact(claim.id, wanted.id, wanted.gpu, claim.program)
            for claim, wanted in self._claims.values()
        ]
        return facts


def _facts(session: Session, origins: dict[int, str]) -> list[SessionFact]:
    number, started_ms = str(session.id), _ms(session.since)
    theirs = [
        SessionFact(number, origins[seat.vgpu], seat.gpu, session.program, started_ms)
        for seat in session.seats
        if seat.vgpu in origins
    ]
    # One of the node's own is one row, whatever its number of GPUs: it takes nothing of theirs.
    gpu = session.devices[0] if session.devices else ""
    return theirs or [SessionFact(number, "", gpu, session.program, started_ms)]


def _ms(utc_text: str) -> int:
    try:
        moment = datetime.fromisoformat(utc_text.replace("Z", "+00:00"))
    except ValueError:  # an older hostd's record
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return int(moment.timestamp() * 1000)
