"""Fakes of the ports of virtual machines: records and places in memory."""

from __future__ import annotations

from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.vm import Vm, VmRight


class FakeVmStore:
    """Implements `vm_ports.VmStore`."""

    def __init__(self) -> None:
        self.rights: dict[str, VmRight] = {}
        self.records: dict[str, Vm] = {}

    def load_rights(self) -> list[VmRight]:
        """By UUID."""
        return [self.rights[uuid] for uuid in sorted(self.rights)]

    def save_right(self, right: VmRight) -> None:
        """Through its written form."""
        self.rights[right.uuid] = VmRight.from_dict(right.as_dict())

    def remove_right(self, uuid: str) -> None:
        """Forgets it."""
        self.rights.pop(uuid, None)

    def load(self) -> list[Vm]:
        """By UUID."""
        return [self.records[uuid] for uuid in sorted(self.records)]

    def save(self, vm: Vm) -> None:
        """Through its written form."""
        self.records[vm.uuid] = Vm.from_dict(vm.as_dict())

    def remove(self, uuid: str) -> None:
        """Forgets it."""
        self.records.pop(uuid, None)


class FakePlaces:
    """Implements `vm_ports.VmPlaces`. What a hostd has opened is gone with it, the rest stays."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.over: set[str] = set()  # ended while no hostd was there
        self.fail = ""
        self.fail_remove = ""

    def make(self, vm: Vm) -> None:
        """Makes it, or fails half-way as the test asked."""
        self.there.add(vm.uuid)
        self.over.discard(vm.uuid)
        if self.fail:
            raise PortError(self.fail)

    def remove(self, uuid: str) -> None:
        """Removes it, or fails as the test asked."""
        if self.fail_remove:
            raise PortError(self.fail_remove)
        self.there.discard(uuid)

    def ended(self, uuid: str) -> bool:
        """As the test says."""
        return uuid in self.over

    def found(self) -> list[str]:
        """What is there."""
        return sorted(self.there)
