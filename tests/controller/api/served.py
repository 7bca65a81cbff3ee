"""A real gRPC server on a store, and simulated nodes that talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from gpupool.bench.simulated_node import SimulatedNode, cards, channel
from gpupool.controller.api.grpc.access import Access
from gpupool.controller.api.grpc.server import NodeDoor, NodeServer
from gpupool.controller.api.grpc.servicer import Servicer, Timing
from gpupool.controller.api.limiter import Limiter
from gpupool.controller.core.identity import new_id
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.token import Role, Token, digest, new_secret
from gpupool.wire.proto.node import node_api
from tests.controller.pool import Pool

BEAT_S = 0.3


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def node_token(pool: Pool, node_name: str | None = None) -> str:
    """A token for that node, or for any."""
    secret = new_secret()

    def work(tables: Tables) -> None:
        token = Token(new_id("token", tables.now_ms), "node", Role.NODE, None, node_name)
        tables.tokens.add(token, digest(secret))

    pool.store.change(work)
    return secret


@contextlib.contextmanager
def replica(
    pool: Pool, door: NodeDoor | None = None, failures: Limiter | None = None
) -> Iterator[str]:
    """A server; "host:port"."""
    servicer = Servicer(
        pool.store,
        lambda: pool.licence,
        node_api(),
        Access(pool.store, now_ms, failures),
        Timing(beat_s=BEAT_S),
    )
    server = NodeServer(door or NodeDoor("127.0.0.1:0"), servicer)
    server.start()
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def node(
    targets: list[str], token: str, name: str = "n1", gpus: int = 1, wait: bool = True
) -> AsyncIterator[SimulatedNode]:
    """A simulated node that runs."""
    one = SimulatedNode(node_api(), name, cards(name, gpus), token)
    channels: list[Any] = [channel(target) for target in targets]
    task = asyncio.create_task(one.run(channels))
    try:
        if wait:
            await asyncio.wait_for(one.connected.wait(), 10)
        yield one
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for each in channels:
            await each.close()


async def until(condition: Callable[[], object], timeout_s: float = 10) -> float:
    """Waits for it; how long that took. Raises TimeoutError."""
    began_s = time.monotonic()
    while not await asyncio.to_thread(condition):
        if time.monotonic() - began_s > timeout_s:
            raise TimeoutError("it did not happen")
        await asyncio.sleep(0.02)
    return time.monotonic() - began_s
