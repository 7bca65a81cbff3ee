"""GpuSource port: the choice between NVIDIA cards and the software GPU (`gpu` in the
configuration).
"""

from __future__ import annotations

from dataclasses import replace

from gpupool.hostd.core.gpu import Inventory
from gpupool.hostd.core.ports import GpuSource


class ChosenGpus:
    """Implements `ports.GpuSource`: `auto` takes NVIDIA cards where there are any, else the
    software GPU.
    """

    def __init__(
        self, choice: str, nvidia: GpuSource, software: GpuSource, uuids: tuple[str, ...] = ()
    ) -> None:
        self._choice = choice
        self._nvidia = nvidia
        self._software = software
        self._uuids = uuids

    def discover(self) -> Inventory:
        """One inventory. With `auto`, its notes tell why NVIDIA cards were not taken."""
        if self._choice == "software":
            return self._software.discover().only(self._uuids)
        nvidia = self._nvidia.discover()
        if self._choice == "nvidia" or nvidia.gpus:
            return nvidia.only(self._uuids)
        software = self._software.discover()
        return replace(software, notes=nvidia.notes + software.notes).only(self._uuids)
