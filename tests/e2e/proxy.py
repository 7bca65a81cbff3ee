"""A TCP relay between programs and hostd that a test can watch, stop and cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

_PIECE = 1 << 18


class Link:
    """One connection through the proxy. `up` and `down` count bytes to and from hostd."""

    def __init__(self, client: socket.socket, host: socket.socket, flow: Flow) -> None:
        self.client, self.host, self._flow = client, host, flow
        self.up = self.down = 0
        self.said = bytearray()  # by the client, while its Flow records

    def carry(self, source: socket.socket, target: socket.socket, way: str) -> None:
        """Passes bytes on until either end closes."""
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                self._flow.gates[way].wait()
                setattr(self, way, getattr(self, way) + len(piece))
                if self._flow.records and way == "up":
                    self.said += piece
                target.sendall(piece)
        self.cut()

    def cut(self) -> None:
        """Ends it on both sides."""
        for end in (self.client, self.host):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Flow:
    """The proxy: `links` in the order in which they were dialled."""

    def __init__(self, port: int) -> None:
        self.links: list[Link] = []
        self.records = False
        self.gates = {"up": threading.Event(), "down": threading.Event()}
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        for gate in self.gates.values():
            gate.set()
        self._start(self._accept)

    @property
    def endpoint(self) -> str:
        """What programs dial."""
        return f"tcp://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Cuts everything."""
        for gate in self.gates.values():
            gate.set()
        self._listener.close()
        for link in self.links:
            link.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                host = socket.create_connection(("127.0.0.1", self._target), timeout=20)
                host.settimeout(None)
                link = Link(client, host, self)
                self.links.append(link)
                self._start(link.carry, client, host, "up")
                self._start(link.carry, host, client, "down")

    @staticmethod
    def _start(work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()


@contextlib.contextmanager
def proxy(port: int) -> Iterator[Flow]:
    """A proxy to a port of this machine."""
    flow = Flow(port)
    try:
        yield flow
    finally:
        flow.close()
