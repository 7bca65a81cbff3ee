"""VgpuStore fake: named vGPUs in memory."""

from __future__ import annotations

from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.vgpu import Vgpu


class FakeVgpus:
    """Implements `ports.VgpuStore`."""

    def __init__(self) -> None:
        self.records: dict[str, Vgpu] = {}
        self.fail = ""

    def load(self) -> list[Vgpu]:
        """By number."""
        return sorted(self.records.values(), key=lambda vgpu: vgpu.id)

    def save(self, vgpu: Vgpu) -> None:
        """Keeps it, or fails as the test asked."""
        if self.fail:
            raise PortError(self.fail)
        self.records[vgpu.name] = vgpu

    def remove(self, vgpu: Vgpu) -> None:
        """Forgets it, or fails as the test asked."""
        if self.fail:
            raise PortError(self.fail)
        self.records.pop(vgpu.name, None)
