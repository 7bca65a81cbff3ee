"""Workers that were started ahead of need, and how one of them is given its client.

Each waits at a socket pair for one message: the command line that it would have got, and the
descriptors (hostd/worker/order.hpp). When hostd ends, so do they: their end of the pair closes.
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

# Where the session's number will stand in the command line: /proc/PID/cmdline of a process can be
# written over, but not grow. As many digits as a 64-bit number has.
SESSION_PLACE = "0" * 20


@dataclass(slots=True)
class Waiting:
    """One process without a client."""

    child: subprocess.Popen[bytes]
    pair: socket.socket
    pidfd: int
    tenant: int
    library: str
    devices: tuple[str, ...]


class WaitingWorkers:
    """The processes that wait. Must be used from the thread of the running event loop."""

    def __init__(self) -> None:
        self._all: list[Waiting] = []

    def count(self, tenant: int | None = None) -> int:
        """How many wait, of that tenant or of all."""
        return sum(tenant in (None, one.tenant) for one in self._all)

    def add(
        self,
        child: subprocess.Popen[bytes],
        pair: socket.socket,
        tenant: int,
        library: str,
        devices: tuple[str, ...],
    ) -> None:
        """Keeps a process that was just started with the other end of `pair`. Raises OSError."""
        one = Waiting(child, pair, os.pidfd_open(child.pid), tenant, library, devices)
        self._all.append(one)
        asyncio.get_running_loop().add_reader(one.pidfd, self._gone, one)

    def take(self, tenant: int, library: str, devices: tuple[str, ...]) -> Waiting | None:
        """One that fits, which the caller now owns. Others stay: they have all GPUs, for programs
        that ask for nothing, while one that asks is on one of several.
        """
        for one in self._all:
            if (one.tenant, one.library, one.devices) == (tenant, library, devices):
                self._forget(one)
                return one
        return None

    def discard(self, tenant: int) -> None:
        """Ends those of that tenant."""
        for one in [each for each in self._all if each.tenant == tenant]:
            self._forget(one)
            self._end(one)

    def _gone(self, one: Waiting) -> None:
        self._forget(one)
        one.pair.close()
        log.warning(
            "a worker that was started ahead of need has ended",
            extra=fields({"worker": one.child.pid, "exit_code": one.child.wait()}),
        )

    def _forget(self, one: Waiting) -> None:
        asyncio.get_running_loop().remove_reader(one.pidfd)
        os.close(one.pidfd)
        self._all.remove(one)

    def _end(self, one: Waiting) -> None:
        """It may be inside the driver and not read the end of its pair, so it is killed."""
        one.pair.close()
        reap(one)


def place_of(fd: int, descriptors: Sequence[int]) -> str:
    """What an order calls a descriptor that goes with it: the worker has another number for it."""
    return f"@{descriptors.index(fd)}"


def give(one: Waiting, words: Sequence[str], descriptors: Sequence[int]) -> bool:
    """Sends the order, in which `place_of` names the descriptors.

    False when the process has gone meanwhile.
    """
    rights = array.array("i", descriptors)
    message = b"".join(word.encode() + b"\0" for word in words)
    try:
        one.pair.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    except OSError:
        return False
    finally:
        one.pair.close()
    return True


def reap(one: Waiting) -> None:
    """Ends a process that nobody watches any more, and waits for its end."""
    one.child.kill()  # ours and not waited for: the pid is its own
    one.child.wait()
