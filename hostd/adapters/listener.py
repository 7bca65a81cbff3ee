"""Listening sockets, locks and token files: everything of hostd's that has a name in the file
system.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
from pathlib import Path

from gpupool.hostd.core.ports import PortError
from gpupool.hostd.endpoint import Endpoint
from gpupool.wire.hello import TOKEN_BYTES

_BACKLOG = 256
_MIN_TOKEN_BYTES = 16


class Lock:
    """An exclusive lock on a file, held while this object lives and this process lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def try_take(self) -> bool:
        """Takes the lock if nobody has it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Gives the lock up.

        The file stays: removing it would let two processes lock two files of one name.
        """
        os.close(self._fd)


def listen(endpoint: Endpoint, mode: int) -> socket.socket:
    """A non-blocking listening socket.

    Raises PortError. A dead predecessor's unix socket is replaced, a live one never.
    """
    try:
        if endpoint.is_unix:
            return _listen_unix(endpoint.path, mode)
        return _listen_tcp(endpoint) if endpoint.cid is None else _listen_vsock(endpoint)
    except OSError as error:
        advice = (
            "; run as root, or use `gpupool run`, which needs no rights"
            if error.errno == errno.EACCES
            else ""
        )
        raise PortError(
            f"cannot listen at {endpoint}: {error.strerror or error}{advice}"
        ) from error


def _listen_unix(path: str, mode: int) -> socket.socket:
    Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    previous = os.umask(0o777)  # nobody may connect before the mode is right
    try:
        listener.bind(path)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(previous)
    Path(path).chmod(mode)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def _remove_stale(path: str) -> None:
    """Removes a socket that nobody listens at. Raises PortError when somebody does."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise PortError(f"{path} exists and is no socket; move it away")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.settimeout(2)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink()
                return
            except (BlockingIOError, TimeoutError):
                pass  # somebody listens and is busy
        raise PortError(
            f"another process already listens at {path}; is a hostd running? (`gpupool status`)"
        )


def _listen_tcp(endpoint: Endpoint) -> socket.socket:
    facts = socket.getaddrinfo(
        endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, kind, protocol, _, address = facts[0]
    listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _listen_vsock(endpoint: Endpoint) -> socket.socket:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind((endpoint.cid, endpoint.port))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def read_token(path: Path, *, fresh: bool = False) -> bytes:
    """The token in a file that only we may read; made if missing, or always with `fresh`.

    Raises PortError.
    """
    try:
        if fresh:
            path.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(24) + "\n")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(fd, "rb") as file:
            mode = stat.S_IMODE(os.fstat(fd).st_mode)
            token = file.read(TOKEN_BYTES * 2).strip()
    except OSError as error:
        raise PortError(f"token file {path}: {error.strerror}") from error
    if mode & 0o077:
        raise PortError(
            f"token file {path} has mode {mode:04o}: others can read it; chmod 0600 it and change "
            "the token"
        )
    if not _MIN_TOKEN_BYTES <= len(token) <= TOKEN_BYTES:
        raise PortError(
            f"token file {path} holds {len(token)} bytes, allowed are {_MIN_TOKEN_BYTES} to "
            f"{TOKEN_BYTES}"
        )
    return token
