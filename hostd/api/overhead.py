"""Looks now and then at what the driver takes for sessions (`core.overhead`)."""

from __future__ import annotations

import asyncio

from gpupool.hostd.core.host import Host
from gpupool.hostd.core.overhead import note_overhead
from gpupool.hostd.core.ports import ProcessMemory, VgpuPages

_EVERY_S = 5.0  # a look takes some milliseconds, in a thread of its own


async def measure_overhead(
    host: Host,
    pages: VgpuPages,
    memory: ProcessMemory,
    alone: asyncio.Lock,
    every_s: float = _EVERY_S,
) -> None:
    """Runs for good. Costs nothing where there is no session on an NVIDIA card. `alone`: a look
    has every card open, so none while one of them changes its driver (api/pools.py).
    """
    while True:
        await asyncio.sleep(every_s)
        if host.sessions and any(gpu.source == "nvidia" for gpu in host.inventory.gpus):
            async with alone:
                held = await asyncio.to_thread(memory.look)
            note_overhead(pages, host.sessions, held)
