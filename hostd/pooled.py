"""Wires what decides which GPUs are given out: the look at the machine, and the two pools."""

from __future__ import annotations

import asyncio
import logging

from gpupool.hostd.adapters.card_memory import CudaMemory
from gpupool.hostd.adapters.cdi import CdiFolder
from gpupool.hostd.adapters.clock import SystemClock
from gpupool.hostd.adapters.pool_file import PoolFileStore
from gpupool.hostd.api.pools import PoolTask
from gpupool.hostd.config import Config
from gpupool.hostd.core.gpu import Inventory
from gpupool.hostd.core.gpu_users import HostGpuUsers
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.pool_ports import PciDevices
from gpupool.hostd.core.pool_steps import Machine
from gpupool.hostd.core.pools import PoolPorts, Pools
from gpupool.hostd.core.ports import GpuSource
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")


class Pooled:
    """The GPUs of one hostd. `users`: who else holds some, to be told of by `main`."""

    def __init__(self, config: Config, host: Host, gpus: GpuSource, devices: PciDevices) -> None:
        """Takes over what an earlier hostd has left. Raises PortError."""
        self._host = host
        self._gpus = gpus
        self.users = HostGpuUsers(host)
        self.users.reserved_on = host.allocations.reserved_on
        cdi = CdiFolder(config.cdi_dir)
        store = PoolFileStore(config.state_dir)
        self.pools = Pools(PoolPorts(store, cdi, self.users, SystemClock()), config.pool)
        self.pools.load()
        memory = CudaMemory() if config.pool.scrub else None
        self.task = PoolTask(self.pools, Machine(devices, cdi, gpus, memory))
        self.pools.on(host.offer, self.task.wake)

    def see(self, inventory: Inventory) -> None:
        """The first look."""
        self._host.offer(self.pools.see(inventory))
        _log_inventory(self._host.inventory)

    async def look(self) -> None:
        """Another look at the machine; not while a card changes its driver."""
        async with self.task.alone:
            inventory = await asyncio.to_thread(self._gpus.discover)
        before = self._host.inventory
        self._host.offer(self.pools.see(inventory))
        if self._host.inventory != before:
            _log_inventory(self._host.inventory)


def _log_inventory(inventory: Inventory) -> None:
    for note in inventory.notes:
        # A missing NVIDIA driver is no news where the software GPU is what is wanted.
        log.log(
            logging.INFO if inventory.gpus else logging.WARNING,
            "GPU discovery",
            extra=fields({"note": note}),
        )
    for gpu in inventory.gpus:
        log.info(
            "GPU found",
            extra=fields(
                {
                    "uuid": gpu.uuid,
                    "name": gpu.name,
                    "memory_mib": gpu.memory_mib,
                    "source": gpu.source,
                }
            ),
        )
