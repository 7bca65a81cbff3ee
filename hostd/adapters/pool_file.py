"""PoolStore port: one JSON file with a version, under the state folder.

Replaced by rename, so whoever reads it sees all of one checkpoint or all of the one before.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from gpupool.hostd.core.pool import PoolFile
from gpupool.hostd.core.ports import PortError


class PoolFileStore:
    """Implements `pool_ports.PoolStore`."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "pools.json"

    def load(self) -> PoolFile:
        """What was saved last. Raises PortError: a guess could give a card to two."""
        try:
            return PoolFile.from_dict(json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return PoolFile()
        except OSError as error:
            raise PortError(f"{self._path}: {error.strerror}") from error
        except ValueError as error:
            raise PortError(
                f"{self._path} cannot be used: {error}. It says which GPUs were given out whole; "
                "use the gpupool that wrote it, or remove it once no container and no virtual "
                "machine has a GPU of this host and every card is bound to its driver"
            ) from error

    def save(self, content: PoolFile) -> None:
        """Replaces it. Raises PortError."""
        fresh = self._path.with_suffix(".new")
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(content.as_dict(), file, indent=1)
                file.flush()
                os.fsync(fd)
            fresh.replace(self._path)
        except OSError as error:
            raise PortError(f"cannot write {self._path}: {error.strerror}") from error
