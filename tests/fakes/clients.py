"""Clients fake: clients that leave when the test says so."""

from __future__ import annotations

from collections.abc import Callable

from gpupool.hostd.core.ports import Client


class FakeClients:
    """Implements `ports.Clients`."""

    def __init__(self) -> None:
        self.watched: dict[int, tuple[Client, Callable[[], None]]] = {}

    def identify(self, peer_pid: int, address: str) -> Client:
        """A process with a start time made of its pid, or an address."""
        return Client(peer_pid, peer_pid * 10) if peer_pid else Client(address=address)

    def watch(self, session_id: int, client: Client, on_gone: Callable[[], None]) -> None:
        """Remembers whom to tell."""
        self.watched[session_id] = (client, on_gone)

    def forget(self, session_id: int) -> None:
        """Nobody is told."""
        self.watched.pop(session_id, None)

    def leave(self, session_id: int) -> None:
        """The client of that session is gone."""
        self.watched.pop(session_id)[1]()
