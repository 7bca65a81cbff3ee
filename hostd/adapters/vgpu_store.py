"""VgpuStore port: one record a named vGPU, in a folder that survives a reboot."""

from __future__ import annotations

from pathlib import Path

from gpupool.hostd.adapters.record_folder import RecordFolder
from gpupool.hostd.core.vgpu import Vgpu


class VgpuDefinitions:
    """Implements `ports.VgpuStore`."""

    def __init__(self, folder: Path) -> None:
        self._records = RecordFolder(folder / "vgpus", "vGPU record")

    def load(self) -> list[Vgpu]:
        """Every readable record, by number."""
        found = self._records.load(Vgpu.from_dict, lambda vgpu: vgpu.name)
        return sorted(found, key=lambda vgpu: vgpu.id)

    def save(self, vgpu: Vgpu) -> None:
        """Writes or replaces a record. Raises PortError."""
        self._records.save(vgpu.name, vgpu.as_dict())

    def remove(self, vgpu: Vgpu) -> None:
        """Deletes a record. Raises PortError."""
        self._records.remove(vgpu.name)
