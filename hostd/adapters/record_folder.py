"""Records in a folder, one JSON file each, replaced by rename after they are on the disk.

One that cannot be read is reported and moved aside, never guessed at. The folder is made with the
first record.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gpupool.hostd.core.ports import PortError
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

_Record = TypeVar("_Record")


class RecordFolder:
    """The records of one kind; `what` says in the log what one of them is."""

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what

    def load(
        self, read: Callable[[dict[str, Any]], _Record], name_of: Callable[[_Record], str]
    ) -> list[_Record]:
        """Every readable one, by name. `read` raises ValueError or TypeError."""
        found = []
        for path in sorted(self._path.glob("*.json")):
            try:
                record = read(json.loads(path.read_text(encoding="utf-8")))
                if path.name != f"{name_of(record)}.json":
                    raise ValueError(f"holds {name_of(record)!r}")
            except (OSError, ValueError, TypeError) as error:
                log.error(
                    f"{self._what} unreadable, moved aside",
                    extra=fields({"path": str(path), "error": str(error)}),
                )
                with contextlib.suppress(OSError):
                    path.rename(path.with_suffix(".unreadable"))
                continue
            found.append(record)
        return found

    def save(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes or replaces one. Raises PortError."""
        path = self._path / f"{name}.json"
        fresh = path.with_suffix(".new")
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(json.dumps(content))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            self._keep_names()
        except OSError as error:
            raise PortError(f"cannot write {path}: {error.strerror}") from error

    def remove(self, name: str) -> None:
        """Deletes one; a missing one is no error. Raises PortError."""
        path = self._path / f"{name}.json"
        try:
            path.unlink(missing_ok=True)
            if self._path.exists():
                self._keep_names()
        except OSError as error:
            raise PortError(f"cannot remove {path}: {error.strerror}") from error

    def _keep_names(self) -> None:
        """A name is on the disk when its folder is (fsync(2))."""
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
