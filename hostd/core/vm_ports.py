"""What the core of virtual machines needs from the machine.

| port | adapter | fake |
|---|---|---|
| VmStore | adapters/vm_files.py | tests/fakes/vms.py |
| VmPlaces | machines.py (adapters/vm_folders.py, adapters/relay_process.py) | tests/fakes/vms.py |
"""

from __future__ import annotations

from typing import Protocol

from gpupool.hostd.core.vm import Vm, VmRight


class VmStore(Protocol):
    """What survives hostd: rights for good, VMs until the next boot."""

    def load_rights(self) -> list[VmRight]:
        """Every record that can be read. Others are reported and left out."""
        ...

    def save_right(self, right: VmRight) -> None:
        """Writes or replaces a record, atomically and for good. Raises PortError."""
        ...

    def remove_right(self, uuid: str) -> None:
        """Forgets it. Raises PortError; a missing record is no error."""
        ...

    def load(self) -> list[Vm]:
        """Every record that can be read. Others are reported and left out."""
        ...

    def save(self, vm: Vm) -> None:
        """Writes or replaces a record, atomically. Raises PortError."""
        ...

    def remove(self, uuid: str) -> None:
        """Forgets it. Raises PortError; a missing record is no error."""
        ...


class VmPlaces(Protocol):
    """Where a VM reaches this host: folder, sockets, window, relay."""

    def make(self, vm: Vm) -> None:
        """Makes what is missing and leaves what is there: a running VM has it open. Raises
        PortError.
        """
        ...

    def remove(self, uuid: str) -> None:
        """Removes all of it. What is missing is no error. Raises PortError."""
        ...

    def ended(self, uuid: str) -> bool:
        """Whether it ended while no hostd was there to be told (qemu_hooks/qemu says so)."""
        ...

    def found(self) -> list[str]:
        """UUIDs of VMs of which something is there."""
        ...
