"""The gRPC server of one replica: a thread with an event loop of its own, beside REST's.

Plain text only where the configuration says so (checked there); else TLS 1.2 or later, with the
certificate of REST, and, where `client_ca` is given, nodes that show a certificate signed by it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from gpupool.controller.api.grpc.servicer import Servicer

log = logging.getLogger("gpupool.controller.nodes")

_START_S = 30.0
_LEAVE_S = 5.0
_OPTIONS = (
    # A node that is gone without a word is noticed; nodes ping every 10 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.so_reuseport", 0),  # two replicas on one address are a mistake
)


class CannotListenError(RuntimeError):
    """The text says why."""


@dataclass(frozen=True, slots=True)
class NodeDoor:
    """Where nodes come in."""

    address: str  # "127.0.0.1:9181"; port 0: any
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


class NodeServer:
    """Started once, stopped once."""

    def __init__(self, door: NodeDoor, servicer: Servicer) -> None:
        self._door = door
        self._servicer = servicer
        self._ready = threading.Event()
        self._problem: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, name="nodes", daemon=True)
        self.port = 0

    def start(self) -> None:
        """Returns when nodes can connect. Raises CannotListenError."""
        self._thread.start()
        if not self._ready.wait(_START_S):
            raise CannotListenError(f"nodes: {self._door.address} was not opened in time")
        if self._problem is not None:
            raise CannotListenError(f"nodes: {self._door.address}: {self._problem}")

    def stop(self) -> None:
        """Streams end; calls that run are answered."""
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None and self._thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
            self._thread.join(timeout=3 * _LEAVE_S)
        self._servicer.close()

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if self._ready.is_set():
                log.exception("the side of the nodes failed")
            self._problem = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((self._servicer.handlers(),))
        credentials = self._credentials()
        if credentials is None:
            self.port = server.add_insecure_port(self._door.address)
        else:
            self.port = server.add_secure_port(self._door.address, credentials)
        await server.start()
        looking = asyncio.create_task(self._servicer.watchers.run())
        log.info("nodes are served on %s (port %d)", self._door.address, self.port)
        self._ready.set()
        await self._stop.wait()
        self._servicer.stopping = True
        self._servicer.watchers.wake_all()
        await server.stop(_LEAVE_S)
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)

    def _credentials(self) -> Any:
        door = self._door
        if door.certificate is None or door.key is None:
            return None
        pair = (door.key.read_bytes(), door.certificate.read_bytes())
        authority = door.client_ca.read_bytes() if door.client_ca else None
        return grpc.ssl_server_credentials(
            [pair], root_certificates=authority, require_client_auth=authority is not None
        )
