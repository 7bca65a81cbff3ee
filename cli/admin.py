"""Talking to a running hostd through its admin socket (the other end is hostd/api/admin.py)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from gpupool.hostd import private
from gpupool.hostd.config import SYSTEM_ADMIN_SOCKET

_LIMIT_BYTES = 64 << 20
DEFAULT_TIMEOUT_S = 30.0


class AdminError(RuntimeError):
    """hostd was asked and did not do it. The text is for people."""


class UnreachableError(AdminError):
    """Nobody answers at that socket."""


class DeniedError(AdminError):
    """Somebody is there but we may not ask."""


def call(
    path: Path, method: str, timeout_s: float = DEFAULT_TIMEOUT_S, **parameters: object
) -> dict[str, Any]:
    """One request and its answer. Raises UnreachableError, DeniedError, AdminError."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(timeout_s)
            connection.connect(os.fspath(path))
            connection.sendall(json.dumps({"method": method, **parameters}).encode() + b"\n")
            line = _read_line(connection)
    except PermissionError as error:
        raise DeniedError(
            f"{path}: only root and the user that runs this hostd may ask it; try sudo"
        ) from error
    except TimeoutError as error:
        raise AdminError(
            f"{path}: hostd did not answer within {timeout_s:g} s; its log may say why"
        ) from error
    except OSError as error:
        raise UnreachableError(f"{path}: {error.strerror or error}") from error
    if not line:
        raise UnreachableError(f"{path}: hostd closed the connection")
    answer = json.loads(line)
    if not answer["ok"]:
        raise AdminError(str(answer["error"]))
    result: dict[str, Any] = answer["result"]
    return result


def _read_line(connection: socket.socket) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        piece = connection.recv(1 << 16)
        if not piece or len(received) > _LIMIT_BYTES:
            return b""
        received += piece
    return bytes(received)


def candidates(named: str | None) -> list[Path]:
    """The admin sockets to ask: the one named, or the system's and this user's own."""
    if named:
        return [Path(named)]
    found = [SYSTEM_ADMIN_SOCKET]
    # A folder that cannot be named: then no private hostd of this user runs either.
    with contextlib.suppress(private.PrivateDirError):
        found.append(private.directory() / "admin.sock")
    return found


def ask_all(named: str | None, method: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The answers of every hostd that is there, and what went wrong with those that are there but
    did not answer.
    """
    answers, problems = [], []
    for path in candidates(named):
        try:
            answers.append(call(path, method))
        except UnreachableError as error:
            if named:
                problems.append(str(error))
        except AdminError as error:
            problems.append(str(error))
    return answers, problems
