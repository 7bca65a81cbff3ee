"""The Kata containers of this host: devices are allowed, containers begin to use them and end.

A container is to `Vms` what a virtual machine is: it has vGPUs, and sessions that nobody else sees.
What is different is here: it comes in through its sandbox's door, and says by its token which of
the sandbox's containers it is. Invariants: a use is written down before anything is given, and a
use whose hypervisor is gone is over; a token counts while its use lasts, in its own sandbox only,
and the device's next container gets another one. Nothing here waits.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from gpupool.hostd.core.admission import Door, Refusal
from gpupool.hostd.core.kata import KIND, KataContainer, KataDevice, KataError, KataUse
from gpupool.hostd.core.kata_hypervisor import Hypervisor
from gpupool.hostd.core.kata_ports import KataPlaces, KataStore
from gpupool.hostd.core.peer import Peer
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.vgpu import Vgpu
from gpupool.hostd.core.vgpus import VgpuError
from gpupool.hostd.core.vm import VmError, VmOrder, VmState
from gpupool.hostd.core.vms import Vms
from gpupool.hostd.log import fields
from gpupool.wire.hello import WelcomeStatus

log = logging.getLogger("gpupool.hostd")


@dataclass(frozen=True, slots=True)
class KataFacts:
    """A device and what it does now."""

    device: KataDevice
    use: KataUse | None
    vgpus: tuple[Vgpu, ...]
    sessions: tuple[int, ...]


class Katas:
    """Those of one host. Used from the event loop only."""

    def __init__(
        self, vms: Vms, store: KataStore, places: KataPlaces, new_uuid: Callable[[], str]
    ) -> None:
        self._vms = vms
        self._store = store
        self._places = places
        self._new_uuid = new_uuid
        self._devices: dict[str, KataDevice] = {}
        self._uses: dict[str, KataUse] = {}  # by device
        self._tokens: dict[str, bytes] = {}  # by device

    def adopt(self) -> None:
        """Finds everything of an earlier hostd again; after `Vms.adopt`."""
        self._devices = {one.name: one for one in self._store.load_devices()}
        for device in tuple(self._devices.values()):
            try:
                self._tokens[device.name] = self._places.token(device.name)
            except PortError as error:
                self._failed("token of a Kata device", device.name, error)
        self._uses = {use.device: use for use in self._store.load_uses()}
        for use in tuple(self._uses.values()):
            try:
                if not self._goes_on(use):
                    raise KataError("its sandbox has ended")
                self._open(use)
            except (VmError, PortError) as error:
                self._failed("Kata container not found again", use.device, error)
                self._try_end(use)
        mine = {self._devices[name].uuid for name in self._uses if name in self._devices}
        for facts in self._vms.all():
            if facts.vm.kata and facts.vm.uuid not in mine:
                self._release(facts.vm.uuid)

    # Devices.

    def allow(self, device: KataDevice) -> KataDevice:
        """Makes or replaces one; a container that uses it keeps what it has. Its `uuid` is ours to
        choose. Raises KataError and PortError.
        """
        old = self._devices.get(device.name)
        device = replace(device, uuid=old.uuid if old else self._new_uuid())
        if problem := device.check():
            raise KataError(problem)
        self._tokens[device.name] = self._places.token(device.name)
        self._store.save_device(device)
        self._devices[device.name] = device
        return device

    def disallow(self, name: str) -> None:
        """Forgets one that nobody uses. Raises KataError and PortError."""
        self._device(name)
        use = self._uses.get(name)
        if use is not None:
            raise KataError(
                f"device {name} is used by container {use.container}; end it, or take it away: "
                f"gpupool kata release {name}"
            )
        self._store.remove_device(name)
        self._places.withdraw(name)
        del self._devices[name]
        self._tokens.pop(name, None)

    # Containers.

    def begin(self, name: str, container: KataContainer, pid: int) -> tuple[Vgpu, ...]:
        """A container gets the device; `pid` is its sandbox's hypervisor. Again is no error. Raises
        KataError and PortError, and has then given nothing.
        """
        device = self._device(name)
        problem = container.check() or device.refuses(container)
        if problem:
            raise KataError(problem)
        hypervisor = self._places.find(pid)
        use = KataUse(name, container, hypervisor)
        old = self._uses.get(name)
        if old == use:
            return self._vms.vgpus_of(device.uuid)
        if (
            old is not None
            and not old.container.is_replaced_by(container)
            and self._places.lives(old.hypervisor)
        ):
            raise KataError(
                f"device {name} is used by container {old.container}, and one container at a time "
                f"has it; allow another device, or end that use: gpupool kata release {name}"
            )
        second = next((one for one in self._uses.values() if one.container == container), None)
        if second is not None and second.device != name:
            raise KataError(
                f"container {container} has device {second.device} already, and a container finds "
                "one only; allow a device with more vGPUs (gpupool kata allow --count)"
            )
        self._drive_out(hypervisor)
        if name in self._uses:
            self._end(self._uses[name])
        self._store.save_use(use)
        self._uses[name] = use
        try:
            order = VmOrder(device.uuid, name, device.vgpus, kata=True)
            self._vms.prepare(order, device.right())
            self._vms.started(device.uuid, 0)
            self._places.give(name, container.uid)
            self._open(use)
        except (VmError, PortError):
            self._try_end(use)
            raise
        log.info("Kata container got its vGPU", extra=fields(_said(use)))
        return self._vms.vgpus_of(device.uuid)

    def end(self, name: str, bundle: str) -> bool:
        """The container of that bundle is over. False: the device is another's, or nobody's. Raises
        VmError and PortError.
        """
        use = self._uses.get(name)
        if use is None or use.container.bundle != bundle:
            return False
        self._end(use)
        return True

    def release(self, name: str) -> bool:
        """Takes the device from its container. False: none has it. Raises VmError and PortError."""
        self._device(name)
        use = self._uses.get(name)
        if use is None:
            return False
        self._end(use)
        return True

    def all(self) -> tuple[KataFacts, ...]:
        """By name."""
        return tuple(
            KataFacts(
                device,
                self._uses.get(name),
                self._vms.vgpus_of(device.uuid),
                self._vms.sessions_of(device.uuid),
            )
            for name, device in sorted(self._devices.items())
        )

    # Doors.

    def place(self, door: Door, peer: Peer) -> tuple[Door, Peer] | None:
        """The door as a sandbox finds it, if it is one; `inside` knows which container."""
        sandbox = door.sandbox or self._sandbox_of(peer)
        if not sandbox:
            return None
        if all(use.container.sandbox != sandbox for use in self._uses.values()):
            closed = (
                "no container of this Kata sandbox has a vGPU (`gpupool kata list` on the host)"
            )
            return replace(door, closed=closed), peer
        return replace(door, sandbox=sandbox), Peer(address=f"vm:{sandbox}")

    def inside(self, door: Door, token: bytes) -> Door | Refusal:
        """The door as that container of a sandbox finds it. Other doors stay as they are."""
        if not door.sandbox:
            return door
        found = None
        for use in self._uses.values():
            if use.container.sandbox == door.sandbox and hmac.compare_digest(
                self._tokens[use.device], token
            ):
                found = self._devices[use.device]
        if found is None:
            sent = "a token that no container of this sandbox has" if token else "no token"
            return Refusal(
                WelcomeStatus.TOKEN,
                f"the client sent {sent}: only a container that was given a CDI device {KIND}=NAME "
                "has one (GPUPOOL_TOKEN_FILE); docs/kata.md, `gpupool kata list` on the host",
            )
        names = tuple(vgpu.name for vgpu in self._vms.vgpus_of(found.uuid))
        return replace(door, vm=found.uuid, tenant=found.tenant, vgpus=names)

    def _sandbox_of(self, peer: Peer) -> str:
        kind, _, rest = peer.address.partition(":")
        if kind != "vsock":
            return ""
        cid = int(rest.partition(":")[0])
        mine = (one.container.sandbox for one in self._uses.values() if one.hypervisor.cid == cid)
        return next(mine, "") if cid else ""

    # Steps.

    def _device(self, name: str) -> KataDevice:
        device = self._devices.get(name)
        if device is None:
            raise KataError(
                f"nobody on this host has allowed a Kata device {name[:80]!r}: gpupool kata allow "
                "NAME --compute 25 ...; `gpupool kata list` shows all"
            )
        return device

    def _goes_on(self, use: KataUse) -> bool:
        device = self._devices.get(use.device)
        if device is None or device.name not in self._tokens:
            return False
        run = any(
            one.vm.uuid == device.uuid and one.vm.state is VmState.STARTED
            for one in self._vms.all()
        )
        return run and self._places.lives(use.hypervisor)

    def _open(self, use: KataUse) -> None:
        gone = partial(self._gone, use.hypervisor)
        self._places.open(use.container.sandbox, use.hypervisor, gone)

    def _gone(self, hypervisor: Hypervisor) -> None:
        """All of that sandbox is over."""
        for use in tuple(self._uses.values()):
            if use.hypervisor == hypervisor:
                log.info("Kata sandbox has ended", extra=fields(_said(use)))
                self._try_end(use)

    def _drive_out(self, hypervisor: Hypervisor) -> None:
        """The kernel gives a CID, and the file system a socket, to one at a time: whoever had them
        before is over, noticed or not. Raises KataError where it is not over: a process may write
        into its command line what it likes.
        """
        for use in tuple(self._uses.values()):
            other = use.hypervisor
            same = (other.cid, other.socket) == (hypervisor.cid, hypervisor.socket)
            if not same or other == hypervisor:
                continue
            if self._places.lives(other):
                raise KataError(
                    f"hypervisor {hypervisor.pid} says that it has cid {other.cid or '-'}, socket "
                    f"{other.socket or '-'}, which sandbox {use.container.sandbox} has"
                )
            self._try_end(use)

    def _end(self, use: KataUse) -> None:
        """Raises VmError and PortError; it is then tried again with the device's next use."""
        device = self._devices.get(use.device)
        if device is not None:
            # First: from here on the old token opens nothing.
            self._tokens[use.device] = self._places.token(use.device, fresh=True)
            self._vms.release(device.uuid)
        self._store.remove_use(use.device)
        self._uses.pop(use.device, None)
        if all(one.container.sandbox != use.container.sandbox for one in self._uses.values()):
            self._places.close(use.container.sandbox)
        log.info("Kata container has ended", extra=fields(_said(use)))

    def _try_end(self, use: KataUse) -> None:
        try:
            self._end(use)
        except (VmError, VgpuError, PortError) as error:
            self._failed("Kata container not ended", use.device, error)

    def _release(self, uuid: str) -> None:
        try:
            self._vms.release(uuid)
        except (VmError, VgpuError, PortError) as error:
            self._failed("left over of a Kata container", uuid, error)

    @staticmethod
    def _failed(what: str, device: str, error: Exception) -> None:
        log.error(what, extra=fields({"device": device, "error": str(error)}))


def _said(use: KataUse) -> dict[str, object]:
    return {
        "device": use.device,
        "container": use.container.id,
        "sandbox": use.container.sandbox,
        "pod": str(use.container),
        "hypervisor": use.hypervisor.kind,
    }
