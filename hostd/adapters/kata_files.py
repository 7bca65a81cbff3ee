"""KataStore port: one record a device, in a folder that stays, and one a container that uses it, in
one that a reboot empties, as no sandbox survives that.
"""

from __future__ import annotations

from pathlib import Path

from gpupool.hostd.adapters.record_folder import RecordFolder
from gpupool.hostd.core.kata import KataDevice, KataUse

_WHAT = "record of a Kata container"


class KataFiles:
    """Implements `kata_ports.KataStore`."""

    def __init__(self, state_dir: Path, kept_dir: Path) -> None:
        self._uses = RecordFolder(state_dir / "kata", _WHAT)
        self._devices = RecordFolder(kept_dir / "kata", _WHAT)

    def load_devices(self) -> list[KataDevice]:
        """By name."""
        return self._devices.load(KataDevice.from_dict, lambda device: device.name)

    def save_device(self, device: KataDevice) -> None:
        """Writes or replaces a record. Raises PortError."""
        self._devices.save(device.name, device.as_dict())

    def remove_device(self, name: str) -> None:
        """Deletes a record. Raises PortError."""
        self._devices.remove(name)

    def load_uses(self) -> list[KataUse]:
        """By device."""
        return self._uses.load(KataUse.from_dict, lambda use: use.device)

    def save_use(self, use: KataUse) -> None:
        """Writes or replaces a record. Raises PortError."""
        self._uses.save(use.device, use.as_dict())

    def remove_use(self, device: str) -> None:
        """Deletes a record. Raises PortError."""
        self._uses.remove(device)
