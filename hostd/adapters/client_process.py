"""Clients port: a client's end, seen without its worker's help.

A process of this host through a pidfd in the event loop; a client over TCP by its connection in the
kernel's table, looked at every few seconds while there is such a session. hostd keeps no descriptor
of the connection: the client must notice at once when its worker ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from gpupool.hostd.adapters.worker_process import start_ticks
from gpupool.hostd.core.ports import Client
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

LOOK_EVERY_S = 5.0
_ESTABLISHED = "01"  # include/net/tcp_states.h
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


class ClientProcesses:
    """Implements `ports.Clients`. Must be used from the thread of the running event loop."""

    def __init__(self, look_every_s: float = LOOK_EVERY_S) -> None:
        self._look_every_s = look_every_s
        self._pidfds: dict[int, int] = {}
        self._connections: dict[int, tuple[Client, Callable[[], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def identify(self, peer_pid: int, address: str) -> Client:
        """A process by pid and start time, else a TCP connection by its address. One out of a
        virtual machine is in no table of ours: its worker alone sees its end.
        """
        if address.startswith(("vm:", "vsock:")):
            return Client()
        ticks = start_ticks(peer_pid) if peer_pid > 0 else None
        return Client(peer_pid, ticks or 0) if ticks else Client(address=address)

    def watch(self, session_id: int, client: Client, on_gone: Callable[[], None]) -> None:
        """Calls `on_gone` once the client is gone."""
        if client.pid and client.start_ticks:
            self._watch_process(session_id, client, on_gone)
        elif client.address:
            self._connections[session_id] = (client, on_gone)
            self._schedule()

    def forget(self, session_id: int) -> None:
        """Stops watching."""
        self._connections.pop(session_id, None)
        pidfd = self._pidfds.pop(session_id, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _watch_process(self, session_id: int, client: Client, on_gone: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            pidfd = os.pidfd_open(client.pid)
        except ProcessLookupError:
            loop.call_soon(on_gone)
            return
        except OSError as error:  # the worker still watches by itself
            log.error(
                "client not watched",
                extra=fields({"session": session_id, "error": str(error)}),
            )
            return
        if start_ticks(client.pid) != client.start_ticks:  # its pid is another's by now
            os.close(pidfd)
            loop.call_soon(on_gone)
            return

        def gone() -> None:
            self.forget(session_id)
            on_gone()

        self._pidfds[session_id] = pidfd
        loop.add_reader(pidfd, gone)

    def _schedule(self) -> None:
        if self._timer is None and self._connections:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._look_every_s, self._look)

    def _look(self) -> None:
        self._timer = None
        alive = established()
        for session_id, (client, on_gone) in tuple(self._connections.items()):
            if client.address not in alive:
                del self._connections[session_id]
                on_gone()
        self._schedule()


def established(tables: tuple[Path, ...] = _TABLES) -> set[str]:
    """The far ends of every established TCP connection, as `address:port`."""
    found = set()
    for table in tables:
        with contextlib.suppress(OSError):  # a kernel without IPv6
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                words = line.split()
                if words[3] == _ESTABLISHED:
                    found.add(_address(words[2]))
    return found


def _address(text: str) -> str:
    """`0100007F:BBDF` -> `127.0.0.1:48095`: 32-bit words in the machine's order, then the port."""
    words, _, port = text.partition(":")
    raw = b"".join(
        int(words[at : at + 8], 16).to_bytes(4, "little") for at in range(0, len(words), 8)
    )
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return f"{socket.inet_ntop(family, raw)}:{int(port, 16)}"  # as getpeername() writes it
