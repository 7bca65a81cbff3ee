"""VmStore port: one JSON file a right, in a folder that stays, and one a prepared VM, in one that a
reboot empties, as no VM survives that.

Files are replaced by rename after they are on the disk. One that cannot be read is reported and
moved aside, never guessed at. The folders are made with the first file.
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
from gpupool.hostd.core.vm import Vm, VmRight
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

_Record = TypeVar("_Record", Vm, VmRight)


class VmFiles:
    """Implements `vm_ports.VmStore`."""

    def __init__(self, state_dir: Path, kept_dir: Path) -> None:
        self._vms = _Folder(state_dir / "vms")
        self._rights = _Folder(kept_dir / "vms")

    def load_rights(self) -> list[VmRight]:
        """By UUID."""
        return self._rights.load(VmRight.from_dict)

    def save_right(self, right: VmRight) -> None:
        """Writes or replaces a record. Raises PortError."""
        self._rights.save(right.uuid, right.as_dict())

    def remove_right(self, uuid: str) -> None:
        """Deletes a record. Raises PortError."""
        self._rights.remove(uuid)

    def load(self) -> list[Vm]:
        """By UUID."""
        return self._vms.load(Vm.from_dict)

    def save(self, vm: Vm) -> None:
        """Writes or replaces a record. Raises PortError."""
        self._vms.save(vm.uuid, vm.as_dict())

    def remove(self, uuid: str) -> None:
        """Deletes a record. Raises PortError."""
        self._vms.remove(uuid)


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, read: Callable[[Mapping[str, Any]], _Record]) -> list[_Record]:
        found = []
        for path in sorted(self._path.glob("*.json")):
            try:
                record = read(json.loads(path.read_text(encoding="utf-8")))
                if path.name != f"{record.uuid}.json":
                    raise ValueError(f"holds {record.uuid}")
            except (OSError, ValueError, TypeError) as error:
                log.error(
                    "record of a virtual machine unreadable, moved aside",
                    extra=fields({"path": str(path), "error": str(error)}),
                )
                with contextlib.suppress(OSError):
                    path.rename(path.with_suffix(".unreadable"))
                continue
            found.append(record)
        return found

    def save(self, uuid: str, content: Mapping[str, Any]) -> None:
        path = self._path / f"{uuid}.json"
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

    def remove(self, uuid: str) -> None:
        path = self._path / f"{uuid}.json"
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
