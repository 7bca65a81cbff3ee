"""The virtual machines of this host: allowed, made ready, started and released.

Invariants: a VM's record is written before anything of it is made, and is the last that goes; so a
hostd that dies on the way finds everything again, and undoes what was not finished. A CID belongs
to one VM from the moment that it is known until its release. Nothing here waits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from gpupool.hostd.core import placement
from gpupool.hostd.core.admission import Door
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.peer import Peer
from gpupool.hostd.core.ports import Clock, PortError
from gpupool.hostd.core.vgpu import Vgpu, VgpuMode
from gpupool.hostd.core.vgpus import VgpuError, Vgpus
from gpupool.hostd.core.vm import (
    Vm,
    VmError,
    VmHealth,
    VmOrder,
    VmRight,
    VmState,
    VmVgpu,
    check_cid,
    check_domain,
    check_uuid,
    check_wanted,
    free_cid,
    owner_of_vm,
    vgpu_names,
    vm_of_owner,
)
from gpupool.hostd.core.vm_bound import LookUp, bind
from gpupool.hostd.core.vm_ports import VmPlaces, VmStore
from gpupool.hostd.core.vm_rights import VmRights
from gpupool.hostd.log import fields
from gpupool.wire.window import check_window

log = logging.getLogger("gpupool.hostd")


@dataclass(frozen=True, slots=True)
class VmSettings:
    """What the configuration says."""

    relay: bool = False  # each VM has one
    window_mib: int = 0  # the largest
    end_grace_s: float = 10
    rights: tuple[VmRight, ...] = ()  # that stand there


@dataclass(frozen=True, slots=True)
class VmFacts:
    """A VM and what it does now."""

    vm: Vm
    vgpus: tuple[Vgpu, ...]
    sessions: tuple[int, ...]
    health: VmHealth


class Vms:
    """Those of one host. Used from the event loop only."""

    def __init__(
        self,
        host: Host,
        vgpus: Vgpus,
        store: VmStore,
        places: VmPlaces,
        clock: Clock,
        settings: VmSettings,
        look_up: LookUp | None = None,
    ) -> None:
        """`look_up`: vGPUs of the controller's that leads this host; None: none does."""
        self._look_up = look_up
        self._host = host
        self._vgpus = vgpus
        self._store = store
        self._places = places
        self._clock = clock
        self._settings = settings
        self.rights = VmRights(store, settings.rights)
        self._vms: dict[str, Vm] = {}
        self._health: dict[str, VmHealth] = {}

    def adopt(self) -> None:
        """Finds everything of an earlier hostd again."""
        self.rights.load()
        self._vms = {vm.uuid: vm for vm in self._store.load()}
        for vm in tuple(self._vms.values()):
            try:
                over = vm.state in (VmState.PREPARING, VmState.RELEASING)
                if over or self._places.ended(vm.uuid):
                    self._undo(vm)
                else:
                    self._places.make(vm)
            except (PortError, VgpuError) as error:
                self._failed("virtual machine not found again", vm.uuid, error)
        self._clear_up()

    def _clear_up(self) -> None:
        """Removes what belongs to no VM."""
        for vgpu in self._host.allocations.table.named:
            if vgpu.vm and vgpu.vm not in self._vms:
                self._drop(vgpu)
        for session in self._host.sessions:
            if vm_of_owner(session.owner) not in ("", *self._vms):
                self._end(session.id)
        for uuid in self._places.found():
            if uuid not in self._vms:
                try:
                    self._places.remove(uuid)
                except PortError as error:
                    self._failed("left over of a virtual machine", uuid, error)

    # Lives.

    def prepare(self, order: VmOrder, right: VmRight | None = None) -> Vm:
        """Makes everything that a domain needs before it starts, or finds it. `right`: its own,
        where it is not among those of domains. Raises VmError and PortError, and has then left
        nothing.
        """
        right = self._check(order, right)
        bound: tuple[str, ...] = ()
        if self._look_up is not None:
            table = self._host.allocations.table
            bound = bind(order, right.tenant, self._look_up, table, self._vms.values())
        old = self._vms.get(order.uuid)
        if old is not None:
            # About to start: whatever an earlier run of it left behind is over.
            self._end_sessions(old)
            if self._is_same(old, order) and old.bound == bound:
                self._places.make(old)
                return self._keep(old.moved(VmState.PREPARED))
            self._undo(old)
        cid = order.cid or right.cid
        relay = self._settings.relay and not order.kata
        if not cid and relay:
            cid = free_cid({vm.cid for vm in self._vms.values()})
        vm = Vm(
            order.uuid,
            order.name,
            right.tenant,
            VmState.PREPARING,
            order.wanted,
            cid,
            order.window_mib,
            relay,
            self._clock.utc_text(),
            bound,
            order.domain_mib,
            order.kata,
        )
        self._keep(vm)
        try:
            for wanted in () if bound else vm.wanted:
                self._make_vgpu(vm, wanted)
            self._places.make(vm)
            vm = self._keep(vm.moved(VmState.PREPARED))
        except (VgpuError, PortError) as error:
            self._undo(vm)
            if isinstance(error, VgpuError):
                raise VmError(f"{vm.title}: {error}") from error
            raise
        log.info("virtual machine prepared", extra=fields(_said(vm)))
        return vm

    def started(self, uuid: str, cid: int) -> Vm:
        """It runs; `cid` is the one that its hypervisor has chosen, 0 where it has none. Raises
        VmError and PortError.
        """
        vm = self.get(uuid)
        if cid:
            self._check_cid(cid, uuid)
            if vm.cid not in (0, cid):
                raise VmError(f"domain {uuid} was prepared with cid {vm.cid}, not {cid}")
            vm = replace(vm, cid=cid)
        return self._keep(vm.moved(VmState.STARTED))

    def release(self, uuid: str) -> bool:
        """It is over: its sessions end and everything is free. False: it was released before.
        Raises VmError and PortError; it is then tried again with the next release or start.
        """
        problem = check_uuid(uuid)
        if problem:
            raise VmError(problem)
        vm = self._vms.get(uuid)
        if vm is None:
            return False
        self._undo(vm)
        log.info("virtual machine released", extra=fields(_said(vm)))
        return True

    def change(self, uuid: str, wanted: tuple[VmVgpu, ...]) -> Vm:
        """Other vGPUs while it runs: resized in their order, more at the end, the last ones taken
        away. Raises VmError and PortError, and has then changed nothing.
        """
        vm = self.get(uuid)
        right = self.rights.find(uuid, vm.name)
        problem = check_wanted(wanted) or right.refuses(vm.name, wanted)
        if vm.bound and not problem:
            problem = (
                f"domain {vm.name or uuid} uses vGPU {', '.join(vm.bound)} of the controller's; "
                "change it there (gpupool vgpu resize --controller URL)"
            )
        if problem:
            raise VmError(problem)
        have = self.vgpus_of(uuid)
        self._check_change(have, wanted)
        done: list[Vgpu] = []
        made = []
        pairs = list(zip(have, wanted, strict=False))
        # What shrinks makes room for what grows.
        pairs.sort(key=lambda pair: pair[1].quota.compute_percent > pair[0].quota.compute_percent)
        try:
            for vgpu, one in pairs:
                if vgpu.quota != one.quota:
                    self._vgpus.resize(vgpu.id, one.quota)
                    done.append(vgpu)
            for one in wanted[len(have) :]:
                made.append(self._make_vgpu(vm, one))
        except (VgpuError, PortError) as error:
            for vgpu in made:
                self._drop(vgpu)
            for vgpu in reversed(done):
                self._vgpus.resize(vgpu.id, vgpu.quota)
            raise VmError(f"domain {vm.name or uuid}: {error}") from error
        for vgpu in have[len(wanted) :]:
            self._vgpus.delete(vgpu.name)
        return self._keep(replace(vm, wanted=wanted))

    def told_health(self, uuid: str, state: str, detail: str) -> None:
        """What the agent in the guest says of itself."""
        before = self._health.get(uuid, VmHealth())
        if (before.state, before.detail) != (state, detail):
            self._health[uuid] = VmHealth(state, detail, self._clock.utc_text())
            facts = {"uuid": uuid, "state": state, "detail": detail}
            log.log(
                logging.WARNING if state == "failed" else logging.INFO,
                "virtual machine's agent",
                extra=fields(facts),
            )

    # Looking.

    @property
    def relay(self) -> bool:
        """Whether each VM's vsock device is our relay."""
        return self._settings.relay

    def get(self, uuid: str) -> Vm:
        """Raises VmError."""
        vm = self._vms.get(uuid)
        if vm is None:
            raise VmError(f"domain {uuid!r} is not prepared here; `gpupool vm list` shows all")
        return vm

    def all(self) -> tuple[VmFacts, ...]:
        """By UUID."""
        return tuple(self.facts(self._vms[uuid]) for uuid in sorted(self._vms))

    def facts(self, vm: Vm) -> VmFacts:
        """What it does now."""
        health = self._health.get(vm.uuid, VmHealth())
        return VmFacts(vm, self.vgpus_of(vm.uuid), self.sessions_of(vm.uuid), health)

    def sessions_of(self, uuid: str) -> tuple[int, ...]:
        """Those that may still have a worker, also after its release."""
        owner = owner_of_vm(uuid)
        return tuple(one.id for one in self._host.sessions if one.owner == owner)

    def vgpus_of(self, uuid: str) -> tuple[Vgpu, ...]:
        """In the order in which it asked for them."""
        table = self._host.allocations.table
        made = sorted((one for one in table.named if one.vm == uuid), key=lambda one: one.id)
        vm = self._vms.get(uuid)
        bound = [table.find(name) for name in vm.bound] if vm is not None else []
        return (*made, *(one for one in bound if one is not None and one.origin))

    def place(self, door: Door, peer: Peer) -> tuple[Door, Peer]:
        """The door as that client finds it: a virtual machine's, with what that one has, if socket
        or CID say so. The process that the kernel names is then the hypervisor's or the relay's,
        and no client's.
        """
        uuid = door.vm or self._uuid_of(peer)
        vm = self._vms.get(uuid)
        if vm is not None and vm.state in (VmState.PREPARED, VmState.STARTED):
            names = tuple(vgpu.name for vgpu in self.vgpus_of(uuid))
            here = replace(door, vm=uuid, tenant=vm.tenant, vgpus=names, window_mib=vm.window_mib)
            return here, Peer(address=f"vm:{uuid}")
        if door.vm or door.vms_only:
            who = door.vm or peer.address.rpartition(":")[0]
            closed = (
                f"{who} is no virtual machine that this host has prepared; does its domain ask for "
                "a vGPU? (`gpupool vm list` there)"
            )
            return replace(door, closed=closed), peer
        return door, peer

    def _uuid_of(self, peer: Peer) -> str:
        """By CID, as the kernel tells it. One whose device is our relay has none in the kernel:
        that CID can be another's there.
        """
        kind, _, rest = peer.address.partition(":")
        if kind != "vsock":
            return ""
        cid = int(rest.partition(":")[0])
        mine = (vm.uuid for vm in self._vms.values() if vm.cid == cid and not vm.relay)
        return next(mine, "") if not check_cid(cid) else ""

    # Steps.

    def _check(self, order: VmOrder, right: VmRight | None) -> VmRight:
        problem = check_uuid(order.uuid) or check_wanted(order.wanted)
        problem = problem or check_domain(order.domain_mib)
        problem = problem or check_window(order.window_mib)
        most_mib = self._settings.window_mib
        if not problem and order.window_mib > most_mib:
            problem = (
                f"a window of {order.window_mib} MiB was asked for; this host allows up to "
                f"{most_mib} (vm.window_mib)"
            )
        if problem:
            raise VmError(problem)
        right = right or self.rights.find(order.uuid, order.name)
        problem = right.refuses(order.name, order.wanted)
        if problem:
            raise VmError(problem)
        if right.cid and order.cid not in (0, right.cid):
            raise VmError(
                f"domain {order.uuid} has cid {order.cid}, and its right says {right.cid}; change "
                "one of them"
            )
        cid = order.cid or right.cid
        if cid:
            self._check_cid(cid, order.uuid)
        return right

    def _check_cid(self, cid: int, uuid: str) -> None:
        problem = check_cid(cid)
        if problem:
            raise VmError(problem)
        other = next((vm for vm in self._vms.values() if vm.cid == cid and vm.uuid != uuid), None)
        if other is not None:
            raise VmError(
                f"cid {cid} is domain {other.name or other.uuid}'s ({other.uuid}) until that is "
                "released; choose another"
            )

    @staticmethod
    def _is_same(vm: Vm, order: VmOrder) -> bool:
        return (
            vm.state in (VmState.PREPARED, VmState.STARTED)
            and (vm.name, vm.wanted, vm.window_mib) == (order.name, order.wanted, order.window_mib)
            # An automatic one may be another at its next start.
            and (order.cid == vm.cid or (vm.relay and not order.cid))
        )

    def _make_vgpu(self, vm: Vm, wanted: VmVgpu) -> Vgpu:
        have = self.vgpus_of(vm.uuid)
        taken = {one.name for one in self._host.allocations.table.named if one.vm != vm.uuid}
        names = vgpu_names(vm.name, vm.uuid, len(have) + 1, taken)
        mine = {one.name for one in have}
        name = next(one for one in reversed(names) if one not in mine)
        gpu = ""
        if wanted.mode is VgpuMode.RESERVED and have:
            # A second one is for a second GPU, where there is one with room.
            others = [room for room in self._host.rooms() if room.gpu not in {v.gpu for v in have}]
            room = placement.choose(wanted.quota, others)
            gpu = room.gpu if room is not None else ""
        return self._vgpus.create(
            Vgpu(0, wanted.quota, name, wanted.mode, gpu=gpu, vm=vm.uuid)
        ).vgpu

    def _check_change(self, have: Sequence[Vgpu], wanted: Sequence[VmVgpu]) -> None:
        for vgpu, one in zip(have, wanted, strict=False):
            if vgpu.mode is not one.mode:
                raise VmError(
                    f"vGPU {vgpu.name} is {vgpu.mode.value}, and {one.mode.value} was asked for; "
                    "that takes a new start of the domain"
                )
        for vgpu in have[len(wanted) :]:
            sessions = self._vgpus.facts(vgpu).sessions
            if sessions:
                used_by = ", ".join(str(one) for one in sessions)
                raise VmError(
                    f"vGPU {vgpu.name} is used by session {used_by}; end it before it is taken away"
                )

    def _undo(self, vm: Vm) -> None:
        """Everything of it goes. Raises PortError and VgpuError; the record then says how far."""
        vm = self._keep(vm.moved(VmState.RELEASING))
        self._end_sessions(vm)
        for vgpu in self.vgpus_of(vm.uuid):
            if not vgpu.origin:
                self._vgpus.delete(vgpu.name, force=True)
        self._places.remove(vm.uuid)
        self._store.remove(vm.uuid)
        self._host.tenant_gone(owner_of_vm(vm.uuid))
        self._vms.pop(vm.uuid, None)
        self._health.pop(vm.uuid, None)
        self._host.changed()

    def _end_sessions(self, vm: Vm) -> None:
        for session_id in self.sessions_of(vm.uuid):
            self._end(session_id)

    def _end(self, session_id: int) -> None:
        self._host.end(session_id)
        self._clock.later(self._settings.end_grace_s, partial(self._end_by_force, session_id))

    def _end_by_force(self, session_id: int) -> None:
        self._host.end(session_id, kill=True)  # False where it is gone

    def _drop(self, vgpu: Vgpu) -> None:
        try:
            self._vgpus.delete(vgpu.name, force=True)
        except (PortError, VgpuError) as error:
            self._failed("vGPU of a virtual machine not deleted", vgpu.vm, error)

    def _keep(self, vm: Vm) -> Vm:
        self._store.save(vm)
        self._vms[vm.uuid] = vm
        return vm

    @staticmethod
    def _failed(what: str, uuid: str, error: Exception) -> None:
        log.error(what, extra=fields({"uuid": uuid, "error": str(error)}))


def _said(vm: Vm) -> dict[str, object]:
    return {"uuid": vm.uuid, "name": vm.name, "cid": vm.cid, "vgpus": len(vm.wanted)}
