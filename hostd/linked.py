"""Wires hostd's side of the controller. Only imported where the configuration names one: gRPC is
not loaded otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpupool import __version__
from gpupool.hostd.adapters.controller_link import ControllerLink, LinkSettings, Node
from gpupool.hostd.adapters.link_file import LinkFile
from gpupool.hostd.api.vgpu_claims import VgpuClaims
from gpupool.hostd.config import Config
from gpupool.hostd.config_controller import ControllerConfig
from gpupool.hostd.core.controlled import Controlled
from gpupool.hostd.core.desired_pools import DesiredPools
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.link import Desired, GpuLoad, Introduction
from gpupool.hostd.core.placement import MIB
from gpupool.hostd.core.pools import Pools
from gpupool.hostd.core.ports import Clock, PortError
from gpupool.hostd.core.vgpus import Vgpus
from gpupool.hostd.core.vm_bound import LookUp
from gpupool.wire.proto.node import NotBuiltError, node_api


@dataclass(frozen=True, slots=True)
class Linked:
    """What hostd has of it."""

    claims: VgpuClaims
    look_up: LookUp
    run: Callable[[], Coroutine[Any, Any, None]]
    status: Callable[[], dict[str, Any]]


def link(
    config: Config, given: ControllerConfig, host: Host, vgpus: Vgpus, pools: Pools, clock: Clock
) -> Linked:
    """Everything for one controller. Raises PortError."""
    try:
        api = node_api()
    except NotBuiltError as error:
        raise PortError(f"messages of the controller: {error}") from error
    switches = DesiredPools(pools)
    controlled = Controlled(
        host,
        vgpus,
        LinkFile(config.vgpu_dir),
        clock,
        switches.gpus,
        end_grace_s=config.limits.end_grace_s,
    )
    instance = f"{_boot_id()} {os.getpid()} {clock.utc_text()}"

    def introduction() -> Introduction:
        return Introduction(
            name=given.node_name,
            version=__version__,
            endpoint=given.endpoint,
            labels=given.labels,
            gpus=switches.gpus(),
            instance=instance,
        )

    def desired(wanted: Desired) -> None:
        switches.apply(wanted.pools)

    node = Node(introduction, lambda: _loads(host), desired)
    settings = LinkSettings(
        given.targets, given.tls, given.token_file, given.ca_file, given.certificate, given.key
    )
    connection = ControllerLink(settings, api, controlled, node)
    claims = VgpuClaims(
        controlled, connection.claim, connection.changed, config.limits.queue_s, __version__
    )
    host.on_change.append(connection.changed)
    return Linked(
        claims,
        controlled.look_up,
        connection.run,
        lambda: asdict(connection.status),
    )


def _loads(host: Host) -> list[GpuLoad]:
    busy = {gpu.uuid: 0 for gpu in host.inventory.gpus}
    used = dict(busy)
    for session in host.sessions:
        _, usage = host.activity(session.id)
        for uuid, one in zip(session.devices, usage, strict=False):
            if uuid in busy:
                busy[uuid] = min(100, busy[uuid] + one.utilization_percent)
                used[uuid] += one.memory_bytes
    return [GpuLoad(uuid, busy[uuid], used[uuid] // MIB) for uuid in busy]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
