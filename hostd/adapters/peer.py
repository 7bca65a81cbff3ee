"""Who is at the other end of a socket, as the kernel tells it (unix(7), SO_PEERCRED)."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

from gpupool.hostd.core.peer import Peer

_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid
_SO_PEERPIDFD = 77  # Linux 6.5, asm-generic/socket.h: the pidfd without a race on the pid


def credentials(connection: socket.socket) -> tuple[int, int]:
    """pid and uid of a unix peer at the time it connected. Raises OSError."""
    pid, uid, _ = _UCRED.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    return int(pid), int(uid)


def identify(connection: socket.socket) -> Peer:
    """The peer.

    The caller closes `pidfd`. A pid of another pid namespace reads as 0: then there is no pidfd.
    """
    if connection.family == socket.AF_VSOCK:
        cid, port = connection.getpeername()
        return Peer(address=f"vsock:{cid}:{port}")  # the kernel vouches for the cid: one machine
    if connection.family != socket.AF_UNIX:
        address = connection.getpeername()
        return Peer(address=f"{address[0]}:{address[1]}")
    pid, uid = credentials(connection)
    return Peer(pid=pid, uid=uid, pidfd=_pidfd(connection, pid))


def _pidfd(connection: socket.socket, pid: int) -> int | None:
    with contextlib.suppress(OSError):  # an older kernel, or a peer that is gone
        fd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        os.set_inheritable(fd, False)
        return fd
    if pid > 0:
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return None
