"""What a guest may know of its vGPUs: the answer to a Query, for NVML in the guest.

Invariant: a report holds constants of the cards and what the asking guest's own sessions use, and
nothing that another tenant does: no other memory, process or load, and no power, temperature or
clock, which tell of a neighbour's load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpupool.hostd.core.admission import MIB
from gpupool.hostd.core.gpu import Gpu, Inventory
from gpupool.hostd.core.ports import DeviceUsage
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.vgpu import Quota
from gpupool.wire.query import (
    MAX_GPUS,
    MAX_PROCESSES,
    UNKNOWN,
    GpuReport,
    ProcessReport,
    Report,
)

# Programs compare driver versions as numbers: the software GPU answers as the driver whose
# interface it has.
_SOFTWARE_DRIVER = "580.00"


@dataclass(frozen=True, slots=True)
class OwnSession:
    """A session of the guest that asks, and what it uses."""

    session: Session
    usage: tuple[DeviceUsage, ...]

    def on(self, gpu: Gpu) -> DeviceUsage | None:
        """What it uses of that GPU; None when it does not have it."""
        if gpu.uuid not in self.session.devices:
            return None
        index = self.session.devices.index(gpu.uuid)
        return self.usage[index] if index < len(self.usage) else DeviceUsage(0, 0)


def make_report(
    quota: Quota,
    inventory: Inventory,
    sessions: Sequence[OwnSession],
    host_version: str,
    used: Mapping[str, int] | None = None,
    quotas: Mapping[str, Quota] | None = None,
) -> Report:
    """vGPUs of that quota on these GPUs, in NVML's order, and what `sessions` use of them; `used`:
    bytes by GPU, where a vGPU has other sessions than these; `quotas`: by GPU, where they differ.
    """
    gpus = sorted(inventory.gpus, key=lambda gpu: (gpu.pci_bus_id, gpu.index))[:MAX_GPUS]
    each = quotas or {}
    driver = inventory.driver_version
    return Report(
        gpus=tuple(
            _gpu(gpu, gpus, each.get(gpu.uuid, quota), sessions, used or {}) for gpu in gpus
        ),
        processes=_processes(gpus, sessions),
        driver_version=_SOFTWARE_DRIVER if driver == "software" else driver,
        host_version=host_version,
        cuda_version=inventory.cuda_version,
    )


def _gpu(
    gpu: Gpu,
    gpus: Sequence[Gpu],
    quota: Quota,
    sessions: Sequence[OwnSession],
    used: Mapping[str, int],
) -> GpuReport:
    card = gpu.card
    usages = [usage for one in sessions if (usage := one.on(gpu)) is not None]
    quota_bytes = quota.memory_mib * MIB
    card_bytes = card.memory_bytes or gpu.memory_mib * MIB
    limited = 0 < quota_bytes < card_bytes
    major, _, minor = gpu.compute_capability.partition(".")

    def known(number: int | None) -> int:
        return UNKNOWN if number is None else number & UNKNOWN

    def peers(kind: int) -> int:
        return sum(1 << place for place, one in enumerate(gpus) if one.uuid in card.peers[kind])

    return GpuReport(
        name=gpu.name,
        uuid=gpu.uuid,
        pci_bus_id=gpu.pci_bus_id,
        total_bytes=quota_bytes if limited else card_bytes,
        # A quota counts what a guest allocates: the driver's own share does not come out of it.
        reserved_bytes=0 if limited else card.reserved_bytes or 0,
        used_bytes=used.get(gpu.uuid, sum(usage.memory_bytes for usage in usages)),
        pci_device_id=known(card.pci_device_id),
        pci_subsystem_id=known(card.pci_subsystem_id),
        compute_major=int(major) if major else UNKNOWN,
        compute_minor=int(minor) if minor else UNKNOWN,
        architecture=known(card.architecture),
        brand=known(card.brand),
        multiprocessors=known(card.multiprocessors),
        cores=known(card.cores),
        memory_bus_bits=known(card.memory_bus_bits),
        max_sm_clock_mhz=known(card.max_sm_clock_mhz),
        max_memory_clock_mhz=known(card.max_memory_clock_mhz),
        max_pcie_generation=known(card.max_pcie_generation),
        max_pcie_width=known(card.max_pcie_width),
        ecc_enabled=known(card.ecc_enabled),
        persistence_enabled=known(card.persistence_enabled),
        compute_percent=quota.compute_percent,
        # Sessions overlap in time by an unknown amount; the sum is an upper bound.
        utilization_percent=min(100, sum(usage.utilization_percent for usage in usages)),
        peers_read=peers(0),
        peers_write=peers(1),
        peers_nvlink=peers(2),
        peers_atomics=peers(3),
        peers_pci=peers(4),
    )


def _processes(gpus: Sequence[Gpu], sessions: Sequence[OwnSession]) -> tuple[ProcessReport, ...]:
    found = [
        ProcessReport(
            gpu=place,
            pid=one.session.client_pid,
            used_bytes=usage.memory_bytes,
            utilization_percent=usage.utilization_percent,
            program=one.session.program,
        )
        for place, gpu in enumerate(gpus)
        for one in sessions
        if (usage := one.on(gpu)) is not None
    ]
    return tuple(found[:MAX_PROCESSES])
