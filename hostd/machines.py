"""Wires what serves virtual machines: their folders, windows, sockets and relays.

A VM's doors are opened when it is prepared and closed when it is released; where the kernel is its
vsock device, it comes through the two that all share, and its CID says which it is.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path

from gpupool import __version__
from gpupool.hostd.adapters import native_files
from gpupool.hostd.adapters.cgroups import Groups
from gpupool.hostd.adapters.clock import SystemClock
from gpupool.hostd.adapters.libvirt_watch import LibvirtWatch
from gpupool.hostd.adapters.listener import listen
from gpupool.hostd.adapters.peer import identify
from gpupool.hostd.adapters.relay_process import RelayProcesses
from gpupool.hostd.adapters.vm_files import VmFiles
from gpupool.hostd.adapters.vm_folders import VmFolders
from gpupool.hostd.api.admin import Method
from gpupool.hostd.api.vm_agent import VmAgents
from gpupool.hostd.api.vms import VmMethods
from gpupool.hostd.config import Config
from gpupool.hostd.config_vm import VmConfig
from gpupool.hostd.core.admission import Door
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.peer import Peer
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.sandbox import Sandbox
from gpupool.hostd.core.vgpus import Vgpus
from gpupool.hostd.core.vm import AGENT_PORT, SESSION_PORT, Vm
from gpupool.hostd.core.vm_bound import LookUp
from gpupool.hostd.core.vm_follow import VmFollower
from gpupool.hostd.core.vms import Vms, VmSettings
from gpupool.hostd.endpoint import VSOCK_ANY, Endpoint
from gpupool.hostd.kata import Kata, Serve
from gpupool.hostd.log import fields, wants_priorities
from gpupool.wire.hello import TransportKind

log = logging.getLogger("gpupool.hostd")

KERNEL_DEVICE = Path("/dev/vhost-vsock")


class Machines:
    """The virtual machines of one hostd. Implements `vm_ports.VmPlaces`."""

    def __init__(
        self,
        config: Config,
        given: VmConfig,
        host: Host,
        vgpus: Vgpus,
        sandbox: Sandbox,
        look_up: LookUp | None,
        groups: Groups | None = None,
    ) -> None:
        """To be followed by `open`. `look_up`: where a controller leads this host; `groups`: where
        relays get a cgroup.
        """
        self._config = config
        self._relay = given.relay == "yes" or (given.relay == "auto" and not KERNEL_DEVICE.exists())
        self._folders = VmFolders(given.folder, given.group)
        words = _relay_words(config, sandbox)
        self._relays = RelayProcesses(native_files.locate().relay, words, groups)
        self.vms = Vms(
            host,
            vgpus,
            VmFiles(config.state_dir, config.vgpu_dir),
            self,
            SystemClock(),
            VmSettings(
                self._relay,
                given.window_mib,
                config.limits.end_grace_s,
                given.rights,
            ),
            look_up,
        )
        self.kata = Kata(config, given, self.vms)
        self._agents = VmAgents(self.vms, self.place, self.kata.inside, identify, __version__)
        self._serve: dict[int, Serve] = {AGENT_PORT: self._agents.serve}
        self._open: dict[str, list[tuple[socket.socket, asyncio.Task[None]]]] = {}
        self._libvirt_uri = given.libvirt_uri
        self._watch: LibvirtWatch | None = None

    def open(self, sessions: Serve) -> None:
        """Finds the VMs of an earlier hostd again, and lets them in: `sessions` serves their
        programs. Raises PortError where libvirt is to be followed and cannot be.
        """
        self._serve[SESSION_PORT] = sessions
        self.vms.adopt()
        self.kata.admit(self._serve)
        if not self._relay:
            self._open_shared()
        if self._libvirt_uri:
            follower = VmFollower(self.vms)
            self._watch = LibvirtWatch(self._libvirt_uri, follower.running, follower.changed)
            self._watch.start()

    def methods(self) -> dict[str, Method]:
        """For `Admin`."""
        relays, folders = self._relays, self._folders
        vms = VmMethods(self.vms, relays.ready, folders.folder, folders.window, relays.pid)
        return {**vms.by_name(), **self.kata.methods()}

    def place(self, door: Door, peer: Peer) -> tuple[Door, Peer]:
        """For the greeter: Kata's sandboxes first, as their CIDs are known to live."""
        return self.kata.place(door, peer) or self.vms.place(door, peer)

    def status(self) -> list[dict[str, object]]:
        """Each in short, for `gpupool status`."""
        return [
            {
                "uuid": facts.vm.uuid,
                "name": facts.vm.name,
                "state": facts.vm.state.value,
                "vgpus": [vgpu.name for vgpu in facts.vgpus],
                "sessions": list(facts.sessions),
                "health": facts.health.state,
            }
            for facts in self.vms.all()
        ]

    async def finish(self) -> None:
        """Closes the doors; VMs and relays go on."""
        if self._watch is not None:
            await asyncio.to_thread(self._watch.stop)
        self._relays.stop()
        await self.kata.finish()
        tasks = [task for doors in self._open.values() for _, task in doors]
        for name in tuple(self._open):
            self._close(name)
        await asyncio.gather(*tasks, return_exceptions=True)

    # VmPlaces

    def make(self, vm: Vm) -> None:
        """Folder, window, sockets, relay. Raises PortError."""
        if vm.kata:
            return  # its doors are its sandbox's: kata.py
        self._folders.make(vm.uuid, vm.window_mib)
        if vm.uuid not in self._open:
            # Relays are of our own user; a hypervisor that brings connections itself is not.
            mode = 0o600 if vm.relay else 0o660
            for port in (SESSION_PORT, AGENT_PORT):
                path = self._folders.folder(vm.uuid) / f"vsock_{port}"
                self._listen(vm.uuid, Endpoint(path=str(path)), port, vm.uuid, mode)
        if vm.relay:
            self._relays.want(vm.uuid, self._folders.folder(vm.uuid), vm.cid, vm.domain_mib)

    def remove(self, uuid: str) -> None:
        """All of it. Raises PortError."""
        self._close(uuid)
        self._relays.end(uuid, self._folders.folder(uuid))
        self._folders.remove(uuid)

    def ended(self, uuid: str) -> bool:
        """Whether it ended while no hostd was there to be told."""
        return self._folders.ended(uuid)

    def found(self) -> list[str]:
        """UUIDs of VMs that have a folder."""
        return self._folders.found()

    def _open_shared(self) -> None:
        taken = {one.endpoint.port for one in self._config.endpoints if one.endpoint.cid}
        for port in (SESSION_PORT, AGENT_PORT):
            if port in taken:
                continue  # an [[endpoint]] of the configuration: it knows VMs by their CID, too
            try:
                self._listen("shared", Endpoint(cid=VSOCK_ANY, port=port), port, "", 0)
            except PortError as error:
                log.warning(
                    "virtual machines cannot come in by the kernel's vsock",
                    extra=fields({"error": str(error)}),
                )

    def _listen(self, name: str, endpoint: Endpoint, port: int, uuid: str, mode: int) -> None:
        listener = listen(endpoint, mode)
        door = Door(
            str(endpoint), frozenset({TransportKind.VSOCK}), b"", vm=uuid, vms_only=not uuid
        )
        task = asyncio.get_running_loop().create_task(self._serve[port](listener, door))
        task.add_done_callback(_tell_accident)
        self._open.setdefault(name, []).append((listener, task))

    def _close(self, name: str) -> None:
        for listener, task in self._open.pop(name, []):
            task.cancel()
            if listener.family == socket.AF_UNIX:
                Path(listener.getsockname()).unlink(missing_ok=True)
            listener.close()


def _tell_accident(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("door of a virtual machine closed", exc_info=task.exception())


def _relay_words(config: Config, sandbox: Sandbox) -> list[str]:
    return [
        *("--sandbox-calls", "yes" if sandbox.seccomp == "on" else "no"),
        *("--sandbox-files", "yes" if sandbox.landlock else "no"),
        *("--log-json", "yes" if config.log_format == "json" else "no"),
        *("--log-priorities", "yes" if wants_priorities(config.log_priorities) else "no"),
    ]
