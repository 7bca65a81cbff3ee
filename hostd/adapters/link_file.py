"""LinkStore port: what the controller last wanted here, as one JSON file beside the named vGPUs.

Replaced by rename after it is on the disk. One that cannot be read is reported and moved aside:
the vGPUs themselves have their own records, and the controller says the rest when it comes back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path

from gpupool.hostd.core.link import Desired
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

_VERSION = 1


class LinkFile:
    """Implements `link.LinkStore`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "controller.json"

    def load(self) -> Desired | None:
        """See the port."""
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content.get("version") != _VERSION:
                raise ValueError(f"version {content.get('version')!r} of the file is not known")
            return Desired.from_dict(content["desired"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, AttributeError) as error:
            log.error(
                "controller's wishes unreadable, moved aside",
                extra=fields({"path": str(self._path), "error": repr(error)}),
            )
            with contextlib.suppress(OSError):
                self._path.rename(self._path.with_suffix(".unreadable"))
            return None

    def save(self, desired: Desired) -> None:
        """See the port."""
        fresh = self._path.with_suffix(".new")
        content = {"version": _VERSION, "desired": desired.as_dict()}
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(json.dumps(content))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            raise PortError(f"cannot write {self._path}: {error.strerror}") from error
