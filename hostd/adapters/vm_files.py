"""VmStore port: one record a right, in a folder that stays, and one a prepared VM, in one that a
reboot empties, as no VM survives that.
"""

from __future__ import annotations

from pathlib import Path

from gpupool.hostd.adapters.record_folder import RecordFolder
from gpupool.hostd.core.vm import Vm, VmRight

_WHAT = "record of a virtual machine"


class VmFiles:
    """Implements `vm_ports.VmStore`."""

    def __init__(self, state_dir: Path, kept_dir: Path) -> None:
        self._vms = RecordFolder(state_dir / "vms", _WHAT)
        self._rights = RecordFolder(kept_dir / "vms", _WHAT)

    def load_rights(self) -> list[VmRight]:
        """By UUID."""
        return self._rights.load(VmRight.from_dict, lambda right: right.uuid)

    def save_right(self, right: VmRight) -> None:
        """Writes or replaces a record. Raises PortError."""
        self._rights.save(right.uuid, right.as_dict())

    def remove_right(self, uuid: str) -> None:
        """Deletes a record. Raises PortError."""
        self._rights.remove(uuid)

    def load(self) -> list[Vm]:
        """By UUID."""
        return self._vms.load(Vm.from_dict, lambda vm: vm.uuid)

    def save(self, vm: Vm) -> None:
        """Writes or replaces a record. Raises PortError."""
        self._vms.save(vm.uuid, vm.as_dict())

    def remove(self, uuid: str) -> None:
        """Deletes a record. Raises PortError."""
        self._vms.remove(uuid)
