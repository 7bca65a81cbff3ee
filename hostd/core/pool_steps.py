"""What each step between the pools does to the machine. Blocking; called outside the event loop.

Invariant: a step that was done, wholly or in part, may be done again. The software GPU has no card:
its steps leave PCI alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpupool.hostd.core.gpu import Inventory
from gpupool.hostd.core.pool import NativeKind, PciFunction, PoolRecord, PoolState, Step
from gpupool.hostd.core.pool_ports import CardMemory, CdiDevice, CdiFiles, Holder, PciDevices
from gpupool.hostd.core.ports import GpuSource, PortError

VFIO_DRIVER = "vfio-pci"
_PERSISTENCED = "nvidia-persistenced"
# They have every card open and do nothing on it: what keeps cards initialised, monitors, and our
# workers, whose sessions are elsewhere.
_HARMLESS = frozenset({_PERSISTENCED, "nv-hostengine", "dcgm-exporter", "gpupool-worker"})


@dataclass(frozen=True, slots=True)
class Machine:
    """What steps touch."""

    devices: PciDevices
    cdi: CdiFiles
    gpus: GpuSource
    memory: CardMemory | None  # None: cards are given out with what is in their memory


@dataclass(frozen=True, slots=True)
class Work:
    """A GPU whose step is to be done, and what it must know of hostd."""

    record: PoolRecord
    workers: Mapping[int, int]  # session by pid of its worker


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went."""

    error: str = ""  # empty: well
    functions: tuple[PciFunction, ...] | None = None  # of SURVEY
    inventory: Inventory | None = None  # of FIND
    note: str = ""  # what an operator should know, though it went well
    lost: bool = False  # of a look at a native GPU: it is not bound to vfio-pci any more


def perform(work: Work, machine: Machine) -> Outcome:
    """Does the step of `work`, or looks after a GPU that is native already."""
    record = work.record
    steps: dict[Step, Callable[[Work, Machine], Outcome]] = {
        Step.CLEAR: _clear,
        Step.SURVEY: _survey,
        Step.CLAIM: _claim,
        Step.PUBLISH: _publish,
        Step.CHECK: _check,
        Step.WITHDRAW: _withdraw,
        Step.RESTORE: _restore,
        Step.FIND: _find,
    }
    try:
        if record.state is PoolState.NATIVE:
            return _look_after(work, machine)
        if record.step is None:
            return Outcome(f"{record.state.value} has nothing to do")
        return steps[record.step](work, machine)
    except PortError as error:
        return Outcome(str(error))


def _clear(work: Work, machine: Machine) -> Outcome:
    # The memory of a software GPU is its process's, and ended with it.
    record = work.record
    if machine.memory is None or record.source != "nvidia":
        return Outcome()
    if record.functions:
        # It got stuck on its way back, perhaps without its driver: no tenant has used it since.
        return Outcome()
    machine.memory.clear(_found(record, machine).library, record.uuid)
    return Outcome()


def _survey(work: Work, machine: Machine) -> Outcome:
    record = work.record
    before = {one.address: one for one in record.functions}
    found = machine.devices.functions(record.pci_address)
    # Of one that an attempt bound to vfio-pci and got stuck, what it had before counts.
    kept = tuple(
        before.get(one.address, one) if one.driver == VFIO_DRIVER else one for one in found
    )
    return Outcome(functions=kept)


def _claim(work: Work, machine: Machine) -> Outcome:
    record, devices = work.record, machine.devices
    bound = {one.address: one.driver for one in devices.functions(record.pci_address)}
    if bound.get(record.pci_address) != VFIO_DRIVER:
        # The driver's unbinding waits for everybody who has the card open, with no end
        # (nv_pci_remove in NVIDIA's open kernel modules), so nobody may.
        obstacle = devices.obstacle(record.pci_address)
        holders = devices.holders(record.pci_address)
        if obstacle or holders:
            raise PortError(obstacle or _held(record, holders, work.workers))
    for one in record.functions:
        devices.claim(one)
    return Outcome()


def _publish(work: Work, machine: Machine) -> Outcome:
    record = work.record
    if record.source != "nvidia":
        machine.cdi.publish(CdiDevice(record.uuid, ()))
        return Outcome(note="a software GPU has no device files: its CDI device is a name only")
    machine.cdi.publish(CdiDevice(record.uuid, machine.devices.nodes(record.pci_address)))
    if record.kind is NativeKind.VFIO:
        return Outcome()
    try:
        holders = machine.devices.holders(record.pci_address)
    except PortError as error:
        return Outcome(note=str(error))
    ours = sorted(work.workers[one.pid] for one in holders if one.pid in work.workers)
    if not ours:
        return Outcome()
    sessions = ", ".join(str(number) for number in ours)
    return Outcome(
        note=f"workers of sessions on other GPUs ({sessions}) have its device file open, as the "
        "driver opens it; they have nothing on it"
    )


def _check(work: Work, machine: Machine) -> Outcome:
    record = work.record
    if record.source != "nvidia" or (record.force and record.kind is NativeKind.CONTAINER):
        return Outcome()
    holders = tuple(
        one
        for one in machine.devices.holders(record.pci_address)
        if one.pid not in work.workers and one.name not in _HARMLESS
    )
    if not holders:
        return Outcome()
    who = ", ".join(one.text for one in holders)
    advice = (
        "shut the virtual machine down first"
        if record.kind is NativeKind.VFIO
        else "end it first, or ask with force: it then shares the card with vGPUs"
    )
    raise PortError(f"GPU {record.uuid} is in use: {who}; {advice}")


def _withdraw(work: Work, machine: Machine) -> Outcome:
    machine.cdi.withdraw(work.record.uuid)
    return Outcome()


def _restore(work: Work, machine: Machine) -> Outcome:
    for one in work.record.functions:
        machine.devices.restore(one)
    return Outcome()


def _find(work: Work, machine: Machine) -> Outcome:
    return Outcome(inventory=_found(work.record, machine))


def _found(record: PoolRecord, machine: Machine) -> Inventory:
    """A look at the machine that shows this GPU. Raises PortError."""
    inventory = machine.gpus.discover()
    if any(one.uuid == record.uuid for one in inventory.gpus):
        return inventory
    why = "; ".join(inventory.notes) or "it shows others"
    raise PortError(
        f"the driver does not show GPU {record.uuid} ({why}); see `nvidia-smi -L` and the kernel's "
        "log"
    )


def _look_after(work: Work, machine: Machine) -> Outcome:
    """After a restart: what containers or virtual machines may use is left as it is."""
    record = work.record
    if record.kind is NativeKind.VFIO:
        drivers = {one.driver for one in machine.devices.functions(record.pci_address)}
        if drivers != {VFIO_DRIVER}:
            return Outcome(lost=True)
    return _publish(work, machine)


def _held(record: PoolRecord, holders: tuple[Holder, ...], workers: Mapping[int, int]) -> str:
    words = [
        f"the worker of session {workers[one.pid]} (pid {one.pid})"
        if one.pid in workers
        else one.text
        for one in holders
    ]
    names = {one.name for one in holders}
    advice = "end them, then ask again"
    if _PERSISTENCED in names:
        advice = (
            f"`nvidia-smi -i {record.uuid} -pm 0` makes {_PERSISTENCED} close it; ask again then"
        )
    elif all(one.pid in workers for one in holders):
        advice = "the driver opens every card for them; ask again when they have ended"
    return f"GPU {record.uuid} is held by {', '.join(words)}; {advice}"
