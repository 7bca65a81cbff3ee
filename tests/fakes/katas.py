"""Fakes of the ports of Kata containers: records, tokens, hypervisors and doors in memory."""

from __future__ import annotations

from collections.abc import Callable

from gpupool.hostd.core.kata import KataDevice, KataUse
from gpupool.hostd.core.kata_hypervisor import Hypervisor
from gpupool.hostd.core.ports import PortError


class FakeKataStore:
    """Implements `kata_ports.KataStore`."""

    def __init__(self) -> None:
        self.devices: dict[str, KataDevice] = {}
        self.uses: dict[str, KataUse] = {}

    def load_devices(self) -> list[KataDevice]:
        """By name."""
        return [self.devices[name] for name in sorted(self.devices)]

    def save_device(self, device: KataDevice) -> None:
        """Through its written form."""
        self.devices[device.name] = KataDevice.from_dict(device.as_dict())

    def remove_device(self, name: str) -> None:
        """Forgets it."""
        self.devices.pop(name, None)

    def load_uses(self) -> list[KataUse]:
        """By device."""
        return [self.uses[name] for name in sorted(self.uses)]

    def save_use(self, use: KataUse) -> None:
        """Through its written form."""
        self.uses[use.device] = KataUse.from_dict(use.as_dict())

    def remove_use(self, device: str) -> None:
        """Forgets it."""
        self.uses.pop(device, None)


class FakeKataPlaces:
    """Implements `kata_ports.KataPlaces`. What a hostd has opened is gone with it."""

    def __init__(self) -> None:
        self.tokens: dict[str, bytes] = {}
        self.owners: dict[str, int] = {}
        self.hypervisors: dict[int, Hypervisor] = {}  # that run, by pid
        self.doors: dict[str, tuple[Hypervisor, Callable[[], None]]] = {}
        self.fail_open = ""
        self._made = 0

    def token(self, device: str, *, fresh: bool = False) -> bytes:
        """Another one each time that one is made."""
        if fresh or device not in self.tokens:
            self._made += 1
            self.tokens[device] = f"token-{self._made:04}-of-{device}".encode()
            self.owners.pop(device, None)
        return self.tokens[device]

    def give(self, device: str, uid: int) -> None:
        """To that user."""
        self.owners[device] = uid

    def withdraw(self, device: str) -> None:
        """Forgets it."""
        self.tokens.pop(device, None)

    def find(self, pid: int) -> Hypervisor:
        """Of those that run."""
        if pid not in self.hypervisors:
            raise PortError(f"process {pid} is no hypervisor")
        return self.hypervisors[pid]

    def lives(self, hypervisor: Hypervisor) -> bool:
        """Of those that run."""
        return self.hypervisors.get(hypervisor.pid) == hypervisor

    def open(self, sandbox: str, hypervisor: Hypervisor, on_gone: Callable[[], None]) -> None:
        """Opens it, or fails as the test asked."""
        if self.fail_open:
            raise PortError(self.fail_open)
        self.doors[sandbox] = (hypervisor, on_gone)

    def close(self, sandbox: str) -> None:
        """Closes it."""
        self.doors.pop(sandbox, None)

    def ends(self, pid: int) -> None:
        """A hypervisor's process ends, and whoever watches it is told."""
        gone = self.hypervisors.pop(pid)
        for hypervisor, on_gone in tuple(self.doors.values()):
            if hypervisor == gone:
                on_gone()
