"""The folders that Kata shares with containers: one a device, with its token and nothing else.

A container gets the folder and not the file: a token is replaced by a new file, and the folder must
be there before the container is made. Nobody but root gets past the folder above it on the host.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from gpupool.hostd.adapters.listener import read_token
from gpupool.hostd.core.ports import PortError

TOKEN = "token"  # noqa: S105 (a file's name)


class KataFolders:
    """Those of one host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def token(self, device: str, *, fresh: bool = False) -> bytes:
        """The token in the device's folder, made where it is missing. Raises PortError."""
        path = self._folder / device
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.mkdir(mode=0o755, exist_ok=True)
            path.chmod(0o755)  # whatever the umask: the container's user has to get in
        except OSError as error:
            raise PortError(f"cannot make {error.filename or path}: {error.strerror}") from error
        return read_token(path / TOKEN, fresh=fresh)

    def give(self, device: str, uid: int) -> None:
        """Lets that user, and nobody else, read the token. Raises PortError."""
        path = self._folder / device / TOKEN
        try:
            os.chown(path, uid, -1, follow_symlinks=False)
        except OSError as error:
            raise PortError(
                f"cannot give {path} to user {uid} of the container: {error.strerror}"
            ) from error

    def withdraw(self, device: str) -> None:
        """Removes the device's folder. Raises PortError."""
        try:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._folder / device)
        except OSError as error:
            raise PortError(f"cannot remove {error.filename}: {error.strerror}") from error
