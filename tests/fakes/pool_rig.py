"""Pools with a machine that outlives them: what tests of switches between the pools share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpupool.hostd.adapters.pci_devices import SysfsPci
from gpupool.hostd.core.gpu import Inventory
from gpupool.hostd.core.operation import Operation
from gpupool.hostd.core.pool import NativeKind, PciFunction, PoolRecord, PoolState, sysfs_address
from gpupool.hostd.core.pool_ports import CdiFiles, PciDevices
from gpupool.hostd.core.pool_steps import Machine, perform
from gpupool.hostd.core.pools import PoolPorts, PoolRequest, Pools, PoolSettings
from tests.fakes.clock import FakeClock
from tests.fakes.gpu_users import FakeGpuUsers
from tests.fakes.gpus import FakeGpus
from tests.fakes.kernel import FakeKernel
from tests.fakes.pci import VFIO, FakeCdi, FakeMemory, FakePci
from tests.fakes.pool_store import FakePoolStore

UUID = "GPU-00000000-1111-2222-3333-444455556666"
OTHER = "GPU-00000001-1111-2222-3333-444455556666"


class KernelCards(SysfsPci):
    """The real adapter on a fake kernel, with FakePci's view of it."""

    def __init__(self, root: Path) -> None:
        self.kernel = FakeKernel(root)
        self.writer: Any = self.kernel
        super().__init__(root, lambda path, text: self.writer.write(path, text))

    def add_card(self, address: str) -> None:
        """A GPU and its audio function."""
        self.kernel.add_card(address)

    @property
    def cards(self) -> dict[str, PciFunction]:
        """As the kernel has them."""
        names = [one.name for one in (self.kernel.root / "sys/bus/pci/devices").iterdir()]
        cards = [one for one in names if not one.startswith("0000:00:")]
        driver, override = self.kernel.driver, self.kernel.override
        return {one: PciFunction(one, driver(one), override(one)) for one in cards}


class DriverGpus:
    """GpuSource fake: NVML shows the cards that are bound to its driver."""

    def __init__(self, pci: FakePci | KernelCards) -> None:
        self._pci = pci
        shown = FakeGpus.from_file("h100x8.json").inventory
        # Files take their time.
        few = shown.gpus[:2] if isinstance(pci, KernelCards) else shown.gpus
        self.inventory = replace(shown, gpus=few)
        for gpu in self.inventory.gpus:
            pci.add_card(sysfs_address(gpu.pci_bus_id))

    def discover(self) -> Inventory:
        """What the driver has."""
        bound = {key for key, one in self._pci.cards.items() if one.driver == "nvidia"}
        gpus = [one for one in self.inventory.gpus if sysfs_address(one.pci_bus_id) in bound]
        return replace(self.inventory, gpus=tuple(gpus))


@dataclass
class Rig:
    """The fakes, kept when hostd restarts. `wrap` may stand before each of them."""

    store: FakePoolStore = field(default_factory=FakePoolStore)
    pci: FakePci = field(default_factory=FakePci)
    kernel: KernelCards | None = None  # in its place
    cdi: FakeCdi = field(default_factory=FakeCdi)
    memory: FakeMemory = field(default_factory=FakeMemory)
    users: FakeGpuUsers = field(default_factory=FakeGpuUsers)
    clock: FakeClock = field(default_factory=FakeClock)
    settings: PoolSettings = field(default_factory=PoolSettings)

    def __post_init__(self) -> None:
        self.gpus = DriverGpus(self.machine)
        self.memory.used = {UUID, OTHER}

    @property
    def machine(self) -> FakePci | KernelCards:
        """Where the cards are."""
        return self.kernel or self.pci

    def start(self, wrap: Any = lambda port: port) -> Running:
        """A hostd, as after a start."""
        cdi: CdiFiles = wrap(self.cdi)
        pci: PciDevices = wrap(self.machine)
        if self.kernel is not None:
            self.kernel.writer = wrap(self.kernel.kernel)
        ports = PoolPorts(wrap(self.store), cdi, wrap(self.users), self.clock)
        machine = Machine(pci, cdi, wrap(self.gpus), wrap(self.memory))
        running = Running(self, Pools(ports, self.settings), machine)
        running.pools.load()
        running.pools.see(self.gpus.discover())
        return running


@dataclass
class Running:
    """One life of hostd."""

    rig: Rig
    pools: Pools
    machine: Machine

    def go(self, seconds: float = 0.0) -> None:
        """Does all there is to do now, and whatever time brings."""
        self._all()
        while seconds > 0:
            self.rig.clock.pass_time(1.0)
            seconds -= 1.0
            self._all()

    def _all(self) -> None:
        for _ in range(200):
            work = self.pools.moves.next_work()
            if work is None:
                return
            self.pools.moves.settle(work, perform(work, self.machine))
        raise AssertionError("it goes round and round")

    def ask(
        self,
        pool: str,
        kind: NativeKind | None = None,
        deadline_s: int = -1,
        *,
        force: bool = False,
        uuid: str = UUID,
    ) -> Operation:
        """`gpupool gpu pool`."""
        return self.pools.switch(PoolRequest(uuid, pool == "native", kind, deadline_s, force))

    def gpu(self, uuid: str = UUID) -> PoolRecord:
        """Its record."""
        return next(one for one in self.pools.gpus if one.uuid == uuid)

    def offered(self) -> set[str]:
        """What vGPUs may be placed on, by the last look."""
        return {one.uuid for one in self.pools.see(self.rig.gpus.discover()).gpus}


def check_settled(running: Running, uuid: str = UUID) -> PoolState:
    """Everything agrees on where a GPU is, and nothing is left over. Answers where."""
    rig, record = running.rig, running.gpu(uuid)
    functions = [
        one for key, one in rig.machine.cards.items() if key[:-1] == record.pci_address[:-1]
    ]
    drivers = sorted(one.driver for one in functions)
    assert not [one for one in running.pools.operations if one.running]
    assert rig.store.load().gpu(uuid) == record
    assert record.step is None
    if record.state is PoolState.POOLED:
        assert drivers == ["nvidia", "snd_hda_intel"]
        assert {one.override for one in functions} == {""}
        assert uuid not in rig.cdi.devices
        assert uuid in running.offered()
        assert (record.functions, record.failure, record.deadline_s) == ((), "", -1)
        return record.state
    assert record.state is PoolState.NATIVE
    assert uuid not in running.offered()
    assert uuid not in {gpu for gpus in rig.users.on.values() for gpu in gpus}
    assert uuid not in rig.memory.used
    nodes = rig.cdi.devices[uuid].nodes
    if record.kind is NativeKind.VFIO:
        assert drivers == [VFIO, VFIO]
        assert nodes[0].startswith("/dev/vfio/")
    else:
        assert drivers == ["nvidia", "snd_hda_intel"]
        assert nodes[0] == "/dev/nvidia0"
    return record.state
