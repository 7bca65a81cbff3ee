"""VgpuStore port: one JSON file a named vGPU, in a folder that survives a reboot.

Files are replaced by rename after they are on the disk. One that cannot be read is reported and
moved aside, never guessed at. The folder is made with the first vGPU.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path

from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.vgpu import Vgpu
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")


class VgpuDefinitions:
    """Implements `ports.VgpuStore`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "vgpus"

    def load(self) -> list[Vgpu]:
        """Every readable record, by number."""
        found = []
        for path in self._folder.glob("*.json"):
            try:
                vgpu = Vgpu.from_dict(json.loads(path.read_text(encoding="utf-8")))
                if path.name != f"{vgpu.name}.json":
                    raise ValueError(f"holds vGPU {vgpu.name!r}")
            except (OSError, ValueError) as error:
                log.error(
                    "vGPU record unreadable, moved aside",
                    extra=fields({"path": str(path), "error": str(error)}),
                )
                with contextlib.suppress(OSError):
                    path.rename(path.with_suffix(".unreadable"))
                continue
            found.append(vgpu)
        return sorted(found, key=lambda vgpu: vgpu.id)

    def save(self, vgpu: Vgpu) -> None:
        """Writes or replaces a record. Raises PortError."""
        path = self._folder / f"{vgpu.name}.json"
        fresh = path.with_suffix(".new")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(json.dumps(vgpu.as_dict()))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            self._keep_names()
        except OSError as error:
            raise PortError(f"cannot write {path}: {error.strerror}") from error

    def remove(self, vgpu: Vgpu) -> None:
        """Deletes a record. Raises PortError."""
        path = self._folder / f"{vgpu.name}.json"
        try:
            path.unlink(missing_ok=True)
            if self._folder.exists():
                self._keep_names()
        except OSError as error:
            raise PortError(f"cannot remove {path}: {error.strerror}") from error

    def _keep_names(self) -> None:
        """A name is on the disk when its folder is (fsync(2))."""
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
