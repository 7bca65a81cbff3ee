"""PoolStore fake: the text of the file in memory, with a switch that makes writing fail."""

from __future__ import annotations

import json

from gpupool.hostd.core.pool import PoolFile
from gpupool.hostd.core.ports import PortError


class FakePoolStore:
    """Implements `pool_ports.PoolStore`."""

    def __init__(self) -> None:
        self.text = ""
        self.fail = ""

    def load(self) -> PoolFile:
        """What was saved, by way of JSON as in a file."""
        return PoolFile.from_dict(json.loads(self.text)) if self.text else PoolFile()

    def save(self, content: PoolFile) -> None:
        """Keeps it, or fails as the test asked."""
        if self.fail:
            raise PortError(self.fail)
        self.text = json.dumps(content.as_dict())
