"""Asking the host: one JSON object a line each way, over vsock (or a unix socket).

The host knows who asks by the connection itself; nothing here names this machine.
"""

from __future__ import annotations

import errno
import json
import socket
from typing import Any

from gpupool.guest.agent.failure import REFUSED, UNREACHABLE, AgentError

HOST = "vsock://2:9178"  # VMADDR_CID_HOST of vsock(7), and the agents' port of hostd
_LINE_BYTES = 65536
_TIMEOUT_S = 10.0


class Channel:
    """Where the host answers; each question is a connection of its own."""

    def __init__(self, where: str = HOST) -> None:
        """`where`: vsock://CID:PORT or unix:/path. Raises ValueError."""
        self.where = where
        self._path = ""
        self._cid = self._port = 0
        if where.startswith("unix:/"):
            self._path = where[len("unix:") :]
            return
        cid, _, port = where[len("vsock://") :].partition(":")
        if not where.startswith("vsock://") or not cid.isdigit() or not port.isdigit():
            raise ValueError(f"{where!r} is no channel; write vsock://2:9178 or unix:/path")
        self._cid, self._port = int(cid), int(port)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The host's answer, which says ok. Raises AgentError."""
        try:
            with self._connect() as connection:
                connection.sendall(json.dumps(request).encode() + b"\n")
                line = _read_line(connection)
        except OSError as error:
            text = f"the host does not answer at {self.where}: {_words(error)}"
            raise AgentError(text, UNREACHABLE) from error
        return _checked(line)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX) if self._path else socket.socket(socket.AF_VSOCK)
        try:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(self._path or (self._cid, self._port))
        except BaseException:
            connection.close()
            raise
        return connection


def _read_line(connection: socket.socket) -> bytes:
    data = b""
    while b"\n" not in data:
        piece = connection.recv(_LINE_BYTES)
        if not piece:
            raise OSError(errno.ECONNRESET, "it closed the connection before it answered")
        data += piece
        if len(data) > _LINE_BYTES:
            raise AgentError(f"the host's answer is longer than {_LINE_BYTES} bytes", REFUSED)
    return data.partition(b"\n")[0]


def _checked(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AgentError("the host's answer is no JSON", REFUSED) from error
    if not isinstance(answer, dict):
        raise AgentError("the host's answer is no JSON object", REFUSED)
    if answer.get("ok") is not True:
        reason = answer.get("error", "it gives no reason")
        raise AgentError(f"the host refuses: {str(reason)[:500]}", REFUSED)
    return answer


def _words(error: OSError) -> str:
    """The reason, and what to do where that is known."""
    if error.errno in (errno.EAFNOSUPPORT, errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENETUNREACH):
        return (
            "this machine has no vsock device; on the host, `gpupool vm attach DOMAIN` adds one "
            "(in the guest, modprobe vmw_vsock_virtio_transport if its modules do not load alone)"
        )
    if error.errno in (errno.ECONNRESET, errno.ECONNREFUSED):
        text = error.strerror if error.args[1:] else "connection refused"
        return f"{text}; does hostd run there, and has this domain a vGPU (`gpupool vm list`)?"
    if isinstance(error, socket.timeout):
        return f"nothing within {_TIMEOUT_S:.0f} seconds"
    return error.strerror or str(error)
