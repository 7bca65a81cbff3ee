"""PciDevices and CdiFiles fakes: cards whose drivers are words, with the kernel's rules."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gpupool.hostd.core.pool import PciFunction
from gpupool.hostd.core.pool_ports import CdiDevice, Holder
from gpupool.hostd.core.ports import PortError

VFIO = "vfio-pci"


@dataclass
class FakePci:
    """Implements `pool_ports.PciDevices`. The cards outlive hostd, as the kernel does."""

    cards: dict[str, PciFunction] = field(default_factory=dict)
    held: dict[str, tuple[Holder, ...]] = field(default_factory=dict)  # by address of the GPU
    in_the_way: str = ""
    refuse: dict[str, str] = field(default_factory=dict)  # what fails, by "claim" or "restore"

    def add_card(self, address: str) -> None:
        """A GPU and its audio function."""
        self.cards[address] = PciFunction(address, "nvidia")
        audio = address[:-1] + "1"
        self.cards[audio] = PciFunction(audio, "snd_hda_intel")

    def functions(self, address: str) -> tuple[PciFunction, ...]:
        """Those of the card."""
        found = tuple(one for key, one in sorted(self.cards.items()) if key[:-1] == address[:-1])
        if not found:
            raise PortError(f"there is no PCI device {address}")
        return found

    def holders(self, address: str) -> tuple[Holder, ...]:
        """Whom the test has put there."""
        return self.held.get(address, ())

    def obstacle(self, address: str) -> str:  # noqa: ARG002
        """What the test says."""
        return self.in_the_way

    def claim(self, function: PciFunction) -> None:
        """Unbinds and binds. A driver whose card is open would not return: here it is an error."""
        self._may("claim")
        one = self.cards[function.address]
        assert one.driver == VFIO or not self.held.get(function.address), "unbound under a user"
        self.cards[function.address] = replace(one, driver=VFIO, override=VFIO)

    def restore(self, function: PciFunction) -> None:
        """Unbinds and binds."""
        self._may("restore")
        one = self.cards[function.address]
        assert one.driver != VFIO or not self.held.get(function.address), "taken from its user"
        self.cards[function.address] = function

    def nodes(self, address: str) -> tuple[str, ...]:
        """Of the driver that it has."""
        if self.cards[address].driver == VFIO:
            return (f"/dev/vfio/{address}", "/dev/vfio/vfio")
        return ("/dev/nvidia0", "/dev/nvidiactl")

    def _may(self, what: str) -> None:
        if what in self.refuse:
            raise PortError(self.refuse[what])


class FakeMemory:
    """Implements `pool_ports.CardMemory`."""

    def __init__(self) -> None:
        self.used: set[str] = set()  # UUIDs of cards with something in their memory
        self.fail = ""

    def clear(self, library: str, uuid: str) -> int:
        """Clears it, or fails as the test asked."""
        assert library == "/usr/lib/x86_64-linux-gnu/libcuda.so.1"
        if self.fail:
            raise PortError(self.fail)
        self.used.discard(uuid)
        return 1 << 30


class FakeCdi:
    """Implements `pool_ports.CdiFiles`."""

    def __init__(self) -> None:
        self.devices: dict[str, CdiDevice] = {}
        self.fail = ""

    def publish(self, device: CdiDevice) -> None:
        """Keeps it, or fails as the test asked."""
        if self.fail:
            raise PortError(self.fail)
        self.devices[device.uuid] = device

    def published(self, uuid: str) -> bool:
        """Whether it is there."""
        return uuid in self.devices

    def withdraw(self, uuid: str) -> None:
        """Forgets it."""
        self.devices.pop(uuid, None)
