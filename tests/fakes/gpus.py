"""GpuSource fake: the GPUs that a JSON file lists."""

from __future__ import annotations

import json
from pathlib import Path

from gpupool.hostd.core.gpu import Gpu, Inventory

FOLDER = Path(__file__).parent


class FakeGpus:
    """Implements `ports.GpuSource`."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.looks = 0

    @classmethod
    def from_file(cls, name: str) -> FakeGpus:
        """Reads a file of this folder, e.g. `h100x8.json`."""
        content = json.loads((FOLDER / name).read_text(encoding="utf-8"))
        content["gpus"] = tuple(Gpu(**gpu) for gpu in content["gpus"])
        content["notes"] = tuple(content["notes"])
        return cls(Inventory(**content))

    def discover(self) -> Inventory:
        """What the file says, always."""
        self.looks += 1
        return self.inventory
