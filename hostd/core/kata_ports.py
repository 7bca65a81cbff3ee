"""What the core of Kata containers needs from the machine.

| port | adapter | fake |
|---|---|---|
| KataStore | adapters/kata_files.py | tests/fakes/katas.py |
| KataPlaces | hostd/kata.py, which uses adapters/kata_folders.py | tests/fakes/katas.py |
| | and adapters/hypervisor_process.py | |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gpupool.hostd.core.kata import KataDevice, KataUse
from gpupool.hostd.core.kata_hypervisor import Hypervisor


class KataStore(Protocol):
    """What survives hostd: devices for good, uses until the next boot."""

    def load_devices(self) -> list[KataDevice]:
        """Every record that can be read. Others are reported and left out."""
        ...

    def save_device(self, device: KataDevice) -> None:
        """Writes or replaces a record, atomically and for good. Raises PortError."""
        ...

    def remove_device(self, name: str) -> None:
        """Forgets it. Raises PortError; a missing record is no error."""
        ...

    def load_uses(self) -> list[KataUse]:
        """Every record that can be read. Others are reported and left out."""
        ...

    def save_use(self, use: KataUse) -> None:
        """Writes or replaces a record, atomically. Raises PortError."""
        ...

    def remove_use(self, device: str) -> None:
        """Forgets it. Raises PortError; a missing record is no error."""
        ...


class KataPlaces(Protocol):
    """Tokens, hypervisors, and the doors of sandboxes."""

    def token(self, device: str, *, fresh: bool = False) -> bytes:
        """The token in the device's folder, made where it is missing, or always with `fresh`.
        Raises PortError.
        """
        ...

    def give(self, device: str, uid: int) -> None:
        """Lets that user, and nobody else, read the token. Raises PortError."""
        ...

    def withdraw(self, device: str) -> None:
        """Removes the device's folder. Raises PortError; a missing one is no error."""
        ...

    def find(self, pid: int) -> Hypervisor:
        """Which virtual machine that process is. Raises PortError where it is none."""
        ...

    def lives(self, hypervisor: Hypervisor) -> bool:
        """Whether it still runs."""
        ...

    def open(self, sandbox: str, hypervisor: Hypervisor, on_gone: Callable[[], None]) -> None:
        """Lets the sandbox in, and calls `on_gone` once its hypervisor has ended. Open already is
        no error. Raises PortError.
        """
        ...

    def close(self, sandbox: str) -> None:
        """Lets it in no longer."""
        ...
