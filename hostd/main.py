"""The only place where hostd's objects are wired, and its life from lock to last log line.

Order: lock, sockets, token, GPUs, sessions of an earlier hostd, then the doors open. SIGTERM and
SIGINT close the doors and leave the workers running; the next hostd finds them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpupool import __version__
from gpupool.hostd.adapters import certificate, native_files, sandbox_facts
from gpupool.hostd.adapters.arbiter_process import ArbiterProcesses
from gpupool.hostd.adapters.cgroups import Groups
from gpupool.hostd.adapters.client_process import ClientProcesses
from gpupool.hostd.adapters.clock import SystemClock
from gpupool.hostd.adapters.exchange import TenantExchange
from gpupool.hostd.adapters.gpus import ChosenGpus
from gpupool.hostd.adapters.listener import Lock, listen, read_token
from gpupool.hostd.adapters.notify import notify
from gpupool.hostd.adapters.nvml import NvmlGpus, NvmlProcesses
from gpupool.hostd.adapters.pci_devices import SysfsPci
from gpupool.hostd.adapters.peer import identify
from gpupool.hostd.adapters.session_files import SessionFiles
from gpupool.hostd.adapters.software_gpu import SoftwareGpus
from gpupool.hostd.adapters.tls_process import TlsProcesses
from gpupool.hostd.adapters.vgpu_files import VgpuFiles
from gpupool.hostd.adapters.vgpu_store import VgpuDefinitions
from gpupool.hostd.adapters.vm_folders import window_path
from gpupool.hostd.adapters.vm_windows import VmWindows
from gpupool.hostd.adapters.window import MemfdWindows
from gpupool.hostd.adapters.worker_process import SubprocessWorkers, common_arguments
from gpupool.hostd.api.admin import Admin
from gpupool.hostd.api.greeter import Greeter, Secure, as_it_is, same_for_all
from gpupool.hostd.api.overhead import measure_overhead
from gpupool.hostd.api.pools import PoolMethods
from gpupool.hostd.api.vgpus import VgpuMethods
from gpupool.hostd.config import Config, EndpointConfig
from gpupool.hostd.core.admission import Door
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.idle import IdleRule
from gpupool.hostd.core.pool_ports import PciDevices
from gpupool.hostd.core.pools import Pools
from gpupool.hostd.core.ports import Clock, GpuSource, PortError, ProcessMemory, WorkerProcesses
from gpupool.hostd.core.sandbox import Sandbox, SandboxFacts, plan
from gpupool.hostd.core.start import Ports
from gpupool.hostd.core.vgpus import Vgpus
from gpupool.hostd.core.vms import Vms
from gpupool.hostd.endpoint import Endpoint
from gpupool.hostd.log import fields, wants_priorities
from gpupool.hostd.machines import Machines
from gpupool.hostd.pooled import Pooled
from gpupool.wire.hello import PROTOCOL_MAJOR, PROTOCOL_MINOR
from gpupool.wire.proto import quiet_forks

if TYPE_CHECKING:
    from gpupool.hostd.api.metrics import MetricsDoor
    from gpupool.hostd.linked import Linked

log = logging.getLogger("gpupool.hostd")

_REDISCOVER_S = 15.0  # while there is no GPU: a driver may be loaded later


@dataclass(frozen=True, slots=True)
class OpenDoor:
    """A listening socket and what its clients may do."""

    listener: socket.socket
    door: Door
    token_file: str
    secure: Secure | None = None  # where clients speak TLS
    fingerprint: str = ""  # of its certificate


@dataclass(frozen=True, slots=True)
class Machine:
    """The parts that tests replace by fakes."""

    gpus: GpuSource
    workers: WorkerProcesses
    sandbox: Sandbox = Sandbox()  # noqa: RUF009 (frozen)
    groups: Groups | None = None  # of sessions and relays, where there are cgroups
    devices: PciDevices = field(default_factory=SysfsPci)
    memory: ProcessMemory = field(default_factory=NvmlProcesses)


def real_machine(config: Config) -> Machine:
    """The adapters for this machine."""
    program = native_files.locate().worker
    sandbox, groups = real_sandbox(config, program)
    workers = real_workers(config, program, sandbox, groups)
    return Machine(real_gpus(config), workers, sandbox, groups if sandbox.cgroup else None)


def real_gpus(config: Config) -> GpuSource:
    """The GPUs that this configuration gives out."""
    software = SoftwareGpus(native_files.locate().software_gpu)
    return ChosenGpus(config.gpu, NvmlGpus(config.libcuda), software, config.devices)


def real_sandbox(config: Config, program: Path | None) -> tuple[Sandbox, Groups | None]:
    """What sandbox this machine has; what is missing is logged, once.

    Raises PortError where it is required.
    """
    settings = config.sandbox
    groups = None
    if settings.mode != "off" and settings.cgroup:
        memory_mib = settings.memory_mib or config.limits.window_mib + 8192
        groups = Groups(config.state_dir, settings.threads, memory_mib)
    facts = SandboxFacts()
    if settings.mode != "off":
        facts = sandbox_facts.gather(
            settings,
            program,
            groups.note if groups else "",
            cgroup=groups is not None and groups.usable,
        )
    sandbox = plan(settings, facts)
    if sandbox.missing and settings.mode == "required":
        raise PortError(f'sandbox.mode is "required", but {"; ".join(sandbox.missing)}')
    for text in sandbox.missing:
        log.warning("sandbox incomplete", extra=fields({"missing": text}))
    return sandbox, groups


def real_workers(
    config: Config, program: Path | None, sandbox: Sandbox, groups: Groups | None
) -> SubprocessWorkers:
    """Workers in that sandbox."""
    tail = common_arguments(
        __version__,
        f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}",
        config.log_level,
        json=config.log_format == "json",
        priorities=wants_priorities(config.log_priorities),
    )
    return SubprocessWorkers(program, tail, sandbox, groups, native_files.locate().renderer)


class Hostd:
    """One daemon. `settings` are set for a private one and compared by those who join."""

    def __init__(
        self, config: Config, machine: Machine, settings: dict[str, str] | None = None
    ) -> None:
        self._config = config
        self._machine = machine
        self._settings = settings
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._listeners: list[socket.socket] = []
        self._locks: list[Lock] = []

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serves until stopped. Raises PortError when it cannot start."""
        try:
            await self._serve(ready)
        finally:
            self._close()

    def stop(self, reason: str) -> None:
        """Makes run() return."""
        if not self._stopping.is_set():
            log.info("stopping", extra=fields({"reason": reason}))
        self._stopping.set()

    async def _serve(self, ready: Callable[[], None]) -> None:
        config = self._config
        self._take_lock()
        store = SessionFiles(config.state_dir)
        doors = self._open_doors()
        admin_listener = self._listen(Endpoint(path=str(config.admin_socket)), 0o600)
        inventory = await asyncio.to_thread(self._machine.gpus.discover)
        pages = VgpuFiles(config.state_dir)
        ports = Ports(
            self._machine.workers,
            store,
            MemfdWindows(),
            SystemClock(),
            TenantExchange(),
            ClientProcesses(),
            pages,
            VgpuDefinitions(config.vgpu_dir),
            VmWindows(window_path),
        )
        host = Host(ports, config.limits, inventory, config.ahead)
        pooled = Pooled(config, host, self._machine.gpus, self._machine.devices)
        pools = pooled.pools
        pooled.see(inventory)
        host.adopt()
        arbiters = self._arbiters(pages)
        pooled.users.holders.append(arbiters.release)
        named = Vgpus(host, ports.pages, ports.vgpus)
        linked = self._link(host, named, pools, ports.clock)
        machines = self._machines(host, named, linked)
        greeter = Greeter(
            host,
            identify,
            config.hello_timeout_s,
            __version__,
            config.limits.connections,
            config.limits.queue_s,
            linked.claims if linked else None,
            machines.place if machines else as_it_is,
            machines.kata.inside if machines else same_for_all,
        )
        vgpus = VgpuMethods(named, ports.clock)
        methods = {**PoolMethods(pools).by_name(), **vgpus.by_name()}
        if machines is not None:
            machines.open(greeter.serve)
            methods |= machines.methods()
        facts = self._facts(doors)
        if machines is not None:
            facts["vms"] = machines.status
        if linked is not None:
            facts["controller"] = linked.status
        admin = Admin(host, identify, facts, pooled.look, self.stop, methods)
        metrics = self._metrics(host, machines.vms if machines else None)
        admin.on_guest_change = self._changed.set
        host.on_change += [self._changed.set, pooled.task.wake]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop, signal.Signals(number).name)
        tasks = [
            loop.create_task(greeter.serve(one.listener, one.door, one.secure)) for one in doors
        ]
        tasks.append(loop.create_task(admin.serve(admin_listener)))
        tasks.append(loop.create_task(pooled.task.run()))
        tasks.append(loop.create_task(self._watch_gpus(pooled)))
        tasks.append(
            loop.create_task(measure_overhead(host, pages, self._machine.memory, pooled.task.alone))
        )
        tasks += [loop.create_task(one.serve()) for one in metrics]
        if linked is not None:
            tasks.append(loop.create_task(linked.run()))
        if config.idle_timeout_s:
            busy = lambda: bool(  # noqa: E731
                host.sessions or admin.guests or greeter.waiting or pools.busy
            )
            tasks.append(loop.create_task(self._watch_idle(busy)))
        log.info(
            "ready",
            extra=fields(
                {"version": __version__, "endpoints": ",".join(one.door.name for one in doors)}
            ),
        )
        notify("READY=1")
        ready()
        await self._until_stopped(tasks)
        arbiters.stop()
        if machines is not None:
            await machines.finish()
        await greeter.finish()
        await admin.finish()
        for one in metrics:
            await one.finish()
        log.info("stopped", extra=fields({"sessions_going_on": len(host.sessions)}))

    def _link(self, host: Host, vgpus: Vgpus, pools: Pools, clock: Clock) -> Linked | None:
        """The side of the controller, if the configuration names one. gRPC is loaded only then."""
        given = self._config.controller
        if given is None:
            return None
        quiet_forks()
        try:
            from gpupool.hostd.linked import link
        except ImportError as error:
            raise PortError(
                f"controller.url is set, but {error}: pip install 'gpupool[node]'"
            ) from error
        return link(self._config, given, host, vgpus, pools, clock)

    def _machines(self, host: Host, vgpus: Vgpus, linked: Linked | None) -> Machines | None:
        given = self._config.vm
        if given is None:
            return None
        look_up = linked.look_up if linked else None
        machine = self._machine
        return Machines(self._config, given, host, vgpus, machine.sandbox, look_up, machine.groups)

    def _arbiters(self, pages: VgpuFiles) -> ArbiterProcesses:
        config = self._config
        log_words = ["--log-json", "yes" if config.log_format == "json" else "no"]
        log_words += [
            "--log-priorities",
            "yes" if wants_priorities(config.log_priorities) else "no",
        ]
        arbiters = ArbiterProcesses(
            native_files.locate().arbiter,
            config.state_dir,
            pages.has_shares,
            seccomp=self._machine.sandbox.seccomp == "on",
            log_words=log_words,
        )
        pages.on_change = arbiters.look
        arbiters.look_at_all()
        return arbiters

    async def _until_stopped(self, tasks: list[asyncio.Task[None]]) -> None:
        """Returns when told to stop; raises what a task died of (they only end by accident)."""
        stopping = asyncio.get_running_loop().create_task(self._wait_for_stop())
        done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        notify("STOPPING=1")
        for task in (stopping, *tasks):
            task.cancel()
        await asyncio.gather(stopping, *tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _wait_for_stop(self) -> None:
        await self._stopping.wait()

    def _take_lock(self) -> None:
        state_dir = self._config.state_dir
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = Lock(state_dir / "lock")
        except OSError as error:
            advice = "run as root, or use `gpupool run`, which needs no rights"
            raise PortError(f"state folder {state_dir}: {error.strerror}; {advice}") from error
        self._locks.append(lock)
        if not lock.try_take():
            raise PortError(f"another hostd uses {state_dir}; `gpupool status` shows it")

    def _open_doors(self) -> list[OpenDoor]:
        doors = []
        tokens: dict[Path, bytes] = {}
        for one in self._config.endpoints:
            if one.token_file and one.token_file not in tokens:
                # A private hostd makes a new token at every start: an old one must not open the
                # new door.
                fresh = self._settings is not None
                tokens[one.token_file] = read_token(one.token_file, fresh=fresh)
            token = tokens[one.token_file] if one.token_file else b""
            try:
                secure, fingerprint = self._prepare_tls(one)
            except PortError as error:
                if self._settings is None:
                    raise
                # One's own programs on one's own machine need no TLS: the others will do.
                log.info("no TLS endpoint", extra=fields({"error": str(error)}))
                continue
            listener = self._listen(one.endpoint, one.mode)
            endpoint = one.endpoint
            if not endpoint.is_unix:
                endpoint = replace(endpoint, port=listener.getsockname()[1])
            if self._settings is None and endpoint.transports == ("tcp",):
                log.warning(
                    "endpoint without TLS: bytes travel in clear",
                    extra=fields({"endpoint": str(endpoint)}),
                )
            if fingerprint:
                facts = {"endpoint": str(endpoint), "fingerprint": fingerprint}
                log.info("TLS certificate", extra=fields(facts))
            door = Door(str(endpoint), one.transports, token, one.scrub, one.tenant)
            doors.append(OpenDoor(listener, door, str(one.token_file or ""), secure, fingerprint))
        return doors

    def _prepare_tls(self, one: EndpointConfig) -> tuple[Secure | None, str]:
        """How connections of an endpoint are secured, and its certificate's fingerprint."""
        if one.certificate is None or one.key is None:
            return None, ""
        certificate.prepare(one.certificate, one.key, one.endpoint.host)
        processes = TlsProcesses(
            native_files.locate().tls,
            one.certificate,
            one.key,
            self._config.hello_timeout_s,
            self._machine.sandbox,
            json=self._config.log_format == "json",
        )
        return processes.open, certificate.fingerprint(one.certificate)

    def _listen(self, endpoint: Endpoint, mode: int) -> socket.socket:
        listener = listen(endpoint, mode)
        self._listeners.append(listener)
        return listener

    def _metrics(self, host: Host, vms: Vms | None) -> list[MetricsDoor]:
        """None or one. The library is loaded only where it is used."""
        if self._config.metrics is None:
            return []
        from gpupool.hostd.api.metrics import MetricsDoor

        listener = self._listen(self._config.metrics, 0)
        log.info("metrics endpoint", extra=fields({"port": listener.getsockname()[1]}))
        return [MetricsDoor(host, __version__, listener, vms)]

    def _facts(self, doors: list[OpenDoor]) -> dict[str, object]:
        config = self._config
        return {
            "version": __version__,
            "pid": os.getpid(),
            "private": self._settings is not None,
            "settings": self._settings,
            "admin_socket": str(config.admin_socket),
            "idle_timeout_s": config.idle_timeout_s,
            "max_sessions": config.limits.max_sessions,
            "endpoints": [
                {
                    "endpoint": one.door.name,
                    "transports": sorted(kind.word for kind in one.door.transports),
                    "token_file": one.token_file,
                    "fingerprint": one.fingerprint,
                }
                for one in doors
            ],
        }

    async def _watch_gpus(self, pooled: Pooled) -> None:
        while True:
            await asyncio.sleep(_REDISCOVER_S)
            if not pooled.pools.sees_some:
                await pooled.look()

    async def _watch_idle(self, busy: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        rule = IdleRule(self._config.idle_timeout_s, loop.time())
        while True:
            wait_s = rule.look(loop.time(), busy=busy(), hold=self._hold_joiners)
            if wait_s is None:
                return self.stop("idle")
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait_s)

    def _hold_joiners(self) -> bool:
        """Keeps `gpupool run` from joining a hostd that is about to leave."""
        if self._settings is None:
            return True
        lock = Lock(self._config.state_dir / "start.lock")
        if lock.try_take():
            self._locks.append(lock)
            return True
        lock.release()
        return False

    def _close(self) -> None:
        for listener in self._listeners:
            if listener.family == socket.AF_UNIX:
                Path(listener.getsockname()).unlink(missing_ok=True)
            listener.close()
        for lock in self._locks:  # start.lock last: who then holds it finds the other one free
            lock.release()


def raise_descriptor_limit() -> None:
    """A session costs a few descriptors; the soft limit of many systems is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(
    config: Config, settings: dict[str, str] | None = None, ready: Callable[[], None] = lambda: None
) -> None:
    """Runs hostd in this process until it is stopped. Raises PortError when it cannot start."""
    raise_descriptor_limit()
    machine = real_machine(config)

    async def run() -> None:
        await Hostd(config, machine, settings).run(ready)

    asyncio.run(run())
