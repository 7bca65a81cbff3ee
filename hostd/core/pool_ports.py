"""What switching a GPU between the pools needs from the machine and from the rest of hostd.

| port | adapter | fake |
|---|---|---|
| PciDevices | adapters/pci_devices.py | tests/fakes/pci.py |
| CardMemory | adapters/card_memory.py | tests/fakes/pci.py |
| CdiFiles | adapters/cdi.py | tests/fakes/pci.py |
| PoolStore | adapters/pool_file.py | tests/fakes/pool_store.py |
| GpuUsers | core/gpu_users.py | tests/fakes/gpu_users.py |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gpupool.hostd.core.pool import PciFunction, PoolFile


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a device file of a card open."""

    pid: int
    name: str
    node: str  # "/dev/nvidia0"

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.name} (pid {self.pid}, {self.node})"


@dataclass(frozen=True, slots=True)
class CdiDevice:
    """What a container gets: `gpupool.dev/gpu=UUID`."""

    uuid: str
    nodes: tuple[str, ...]  # device files; none for the software GPU


class PciDevices(Protocol):
    """Cards as the kernel shows them. Addresses are sysfs's: "0000:1b:00.0".

    Calls may take seconds; they are made outside the event loop, one at a time.
    """

    def functions(self, address: str) -> tuple[PciFunction, ...]:
        """Every function of the card, which must be all that its IOMMU group holds besides
        bridges, with the driver that each has now. Raises PortError.
        """
        ...

    def holders(self, address: str) -> tuple[Holder, ...]:
        """Who has the card open through its driver, or its vfio group. Raises PortError where
        nobody can tell.
        """
        ...

    def obstacle(self, address: str) -> str:
        """Why the card cannot go to vfio-pci although no process holds it; empty: it can."""
        ...

    def claim(self, function: PciFunction) -> None:
        """Binds it to vfio-pci, whatever it is bound to now. Raises PortError."""
        ...

    def restore(self, function: PciFunction) -> None:
        """Binds it to what it was bound to before, from vfio-pci or from nothing.

        Raises PortError.
        """
        ...

    def nodes(self, address: str) -> tuple[str, ...]:
        """The device files that a program needs to use the card: of its driver, or of vfio.

        Raises PortError.
        """
        ...


class CardMemory(Protocol):
    """What a card still holds of those who have used it."""

    def clear(self, library: str, uuid: str) -> int:
        """Writes zeros over all of it that nobody has, through that libcuda; so many bytes.

        Takes seconds. Raises PortError.
        """
        ...


class CdiFiles(Protocol):
    """The CDI specifications that container runtimes read."""

    def publish(self, device: CdiDevice) -> None:
        """Writes or replaces it, atomically. Raises PortError."""
        ...

    def published(self, uuid: str) -> bool:
        """Whether there is one, of whatever hostd. Raises PortError."""
        ...

    def withdraw(self, uuid: str) -> None:
        """Removes it; a missing one is no error. Raises PortError."""
        ...


class PoolStore(Protocol):
    """What survives hostd."""

    def load(self) -> PoolFile:
        """What was saved last; an empty file before. Raises PortError when it cannot be read:
        nobody would know which GPU was given away.
        """
        ...

    def save(self, content: PoolFile) -> None:
        """Replaces it, atomically. Raises PortError."""
        ...


class GpuUsers(Protocol):
    """What of ours uses a GPU. Called in the event loop; nothing here waits."""

    def sessions(self, uuid: str) -> tuple[int, ...]:
        """Those with a vGPU on it."""
        ...

    def workers(self) -> dict[int, int]:
        """Session by pid of its worker, of all sessions."""
        ...

    def reserved(self, uuid: str) -> tuple[str, ...]:
        """Names of the reserved vGPUs on it."""
        ...

    def end(self, session_id: int, *, kill: bool) -> None:
        """Tells the worker of a session to stop. One that has ended is no error."""
        ...

    def release(self, uuid: str) -> bool:
        """Ends what holds it without a session: waiting workers, its arbiter.

        False: something is still ending, ask again.
        """
        ...
