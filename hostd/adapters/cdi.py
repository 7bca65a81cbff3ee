"""CdiFiles port: one specification a GPU in a folder that container runtimes look into.

The format is the Container Device Interface's, version 0.6.0
(https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md). Runtimes refuse a file
with a key that they do not know or that is newer than its `cdiVersion`, and watch the folder, so a
file appears whole: hidden from them under another suffix until it is renamed.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from gpupool.hostd.core.pool_ports import CdiDevice
from gpupool.hostd.core.ports import PortError

KIND = "gpupool.dev/gpu"
VERSION = "0.6.0"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*[A-Za-z0-9]")  # SPEC.md, `devices.name`


def specification(device: CdiDevice) -> dict[str, Any]:
    """The file's content. Raises PortError for a name that the format does not allow."""
    if not NAME.fullmatch(device.uuid):
        raise PortError(f"{device.uuid!r} is no name for a CDI device")
    edits: dict[str, Any] = {"env": [f"GPUPOOL_NATIVE_GPU={device.uuid}"]}
    if device.nodes:
        edits["deviceNodes"] = [{"path": path} for path in device.nodes]
    return {
        "cdiVersion": VERSION,
        "kind": KIND,
        "devices": [{"name": device.uuid, "containerEdits": edits}],
    }


def write_whole(path: Path, text: str) -> None:
    """Writes or replaces a specification that everybody may read. Raises OSError."""
    fresh = path.with_suffix(".new")
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, 0o644)  # whatever the umask: container runtimes of users read it
        file.write(text)
        file.flush()
        os.fsync(fd)
    fresh.replace(path)


class CdiFolder:
    """Implements `pool_ports.CdiFiles`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, uuid: str) -> Path:
        # As the reference library names files of one device: vendor-class_device.
        return self._folder / f"{KIND.replace('/', '-')}_{uuid}.json"

    def publish(self, device: CdiDevice) -> None:
        """Writes or replaces it. Raises PortError."""
        text = json.dumps(specification(device), indent=2) + "\n"
        path = self._path(device.uuid)
        try:
            write_whole(path, text)
        except OSError as error:
            raise PortError(
                f"cannot write {path}: {error.strerror}; pool.cdi_dir must be a folder that "
                "hostd's user may write"
            ) from error

    def published(self, uuid: str) -> bool:
        """Whether its file is there. Raises PortError."""
        try:
            self._path(uuid).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise PortError(f"cannot look at {self._path(uuid)}: {error.strerror}") from error
        return True

    def withdraw(self, uuid: str) -> None:
        """Removes it, and what a crash has left of writing it. Raises PortError."""
        path = self._path(uuid)
        try:
            path.unlink(missing_ok=True)
            path.with_suffix(".new").unlink(missing_ok=True)
        except NotADirectoryError:  # then there is nothing in it
            return
        except OSError as error:
            raise PortError(f"cannot remove {path}: {error.strerror}") from error
