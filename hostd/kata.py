"""Wires what serves Kata containers: their tokens, and the doors of their sandboxes.

A sandbox of QEMU comes through the kernel's vsock, where its CID tells it apart (`machines`); those
of the others through two sockets beside their own, which are opened when the first container of the
sandbox gets a vGPU, before it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpupool.hostd.adapters import hypervisor_process
from gpupool.hostd.adapters.kata_files import KataFiles
from gpupool.hostd.adapters.kata_folders import KataFolders
from gpupool.hostd.adapters.listener import listen
from gpupool.hostd.api.admin import Method
from gpupool.hostd.api.katas import KataMethods
from gpupool.hostd.config import Config
from gpupool.hostd.config_vm import VmConfig
from gpupool.hostd.core.admission import Door
from gpupool.hostd.core.kata_hypervisor import Hypervisor
from gpupool.hostd.core.katas import Katas
from gpupool.hostd.core.vm import AGENT_PORT, SESSION_PORT
from gpupool.hostd.core.vms import Vms
from gpupool.hostd.endpoint import Endpoint
from gpupool.wire.hello import TransportKind

log = logging.getLogger("gpupool.hostd")

# Accepts at a listening socket until cancelled.
Serve = Callable[[socket.socket, Door], Coroutine[None, None, None]]


@dataclass(slots=True)
class _Open:
    """A sandbox that may come in."""

    hypervisor: Hypervisor
    watch: hypervisor_process.HypervisorWatch
    doors: list[tuple[socket.socket, asyncio.Task[None]]] = field(default_factory=list)


class Kata:
    """The Kata containers of one hostd. Implements `kata_ports.KataPlaces`."""

    def __init__(self, config: Config, given: VmConfig, vms: Vms) -> None:
        """To be followed by `open`."""
        self._folder = given.kata_folder
        self._folders = KataFolders(given.kata_folder)
        store = KataFiles(config.state_dir, config.vgpu_dir)
        self.katas = Katas(vms, store, self, lambda: str(uuid.uuid4()))
        self.place, self.inside = self.katas.place, self.katas.inside
        # KataPlaces
        self.token, self.give = self._folders.token, self._folders.give
        self.withdraw = self._folders.withdraw
        self.find, self.lives = hypervisor_process.find, hypervisor_process.lives
        self._serve: Mapping[int, Serve] = {}
        self._open: dict[str, _Open] = {}

    def admit(self, serve: Mapping[int, Serve]) -> None:
        """Finds the containers of an earlier hostd again, and lets them in: `serve` by port."""
        self._serve = serve
        self.katas.adopt()

    def methods(self) -> dict[str, Method]:
        """For `Admin`."""
        return KataMethods(self.katas, str(self._folder)).by_name()

    async def finish(self) -> None:
        """Closes the doors; sandboxes go on."""
        tasks = [task for one in self._open.values() for _, task in one.doors]
        for sandbox in tuple(self._open):
            self.close(sandbox)
        await asyncio.gather(*tasks, return_exceptions=True)

    # KataPlaces

    def open(self, sandbox: str, hypervisor: Hypervisor, on_gone: Callable[[], None]) -> None:
        """Sockets where it has no CID, and a look at its hypervisor. Raises PortError."""
        there = self._open.get(sandbox)
        if there is not None and there.hypervisor == hypervisor:
            return
        self.close(sandbox)
        one = _Open(hypervisor, hypervisor_process.HypervisorWatch(hypervisor, on_gone))
        self._open[sandbox] = one
        if not hypervisor.socket:
            return
        for port in (SESSION_PORT, AGENT_PORT):
            endpoint = Endpoint(path=f"{hypervisor.socket}_{port}")
            listener = listen(endpoint, 0o600)
            door = Door(str(endpoint), frozenset({TransportKind.VSOCK}), b"", sandbox=sandbox)
            task = asyncio.get_running_loop().create_task(self._serve[port](listener, door))
            task.add_done_callback(_tell_accident)
            one.doors.append((listener, task))

    def close(self, sandbox: str) -> None:
        """Its sockets go; what has a worker goes on until that is ended."""
        one = self._open.pop(sandbox, None)
        if one is None:
            return
        one.watch.stop()
        for listener, task in one.doors:
            task.cancel()
            with contextlib.suppress(OSError):  # Kata may have removed the folder
                Path(listener.getsockname()).unlink(missing_ok=True)
            listener.close()


def _tell_accident(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("door of a Kata sandbox closed", exc_info=task.exception())
