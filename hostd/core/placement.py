"""How much room each GPU has, and which GPU a vGPU gets.

The rule: on one GPU never more than 100 percent of compute is promised, and never more memory than
it has without what its driver keeps and what contexts of running sessions were measured to take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpupool.hostd.core.gpu import Gpu
from gpupool.hostd.core.vgpu import Quota
from gpupool.hostd.core.vgpu_table import VgpuTable

MIB = 1 << 20
_TEXT_GPUS = 4  # that a refusal names: it has 255 bytes


@dataclass(frozen=True, slots=True)
class Room:
    """What may still be promised of one GPU. Below 0 where measured overhead came after a
    promise.
    """

    gpu: str
    compute_percent: int
    memory_mib: int
    sessions: int

    def fits(self, quota: Quota) -> bool:
        """Whether a vGPU of that quota can be put here."""
        # One without a quota of its own fits where the measured room is below 0, too.
        return (quota.compute_percent == 0 or quota.compute_percent <= self.compute_percent) and (
            quota.memory_mib == 0 or quota.memory_mib <= self.memory_mib
        )


def usable_mib(gpu: Gpu) -> int:
    """What programs can have of that GPU's memory, in contexts and allocations together."""
    if gpu.card.memory_bytes is None:
        return gpu.memory_mib
    return (gpu.card.memory_bytes - (gpu.card.reserved_bytes or 0)) // MIB


def rooms(
    gpus: Sequence[Gpu], table: VgpuTable, overhead_bytes: Mapping[str, int]
) -> tuple[Room, ...]:
    """The room of each GPU. `overhead_bytes`: what contexts there were measured to take."""
    found = []
    for gpu in gpus:
        promised = table.promised(gpu.uuid)
        overhead_mib = -(-overhead_bytes.get(gpu.uuid, 0) // MIB)
        found.append(
            Room(
                gpu.uuid,
                100 - promised.compute_percent,
                usable_mib(gpu) - overhead_mib - promised.memory_mib,
                promised.sessions,
            )
        )
    return tuple(found)


def choose(quota: Quota, where: Sequence[Room]) -> Room | None:
    """The GPU with the most room that fits: neighbours are the fewest there."""
    fitting = [room for room in where if room.fits(quota)]
    return max(
        fitting,
        key=lambda room: (room.compute_percent, room.memory_mib, -room.sessions),
        default=None,
    )


def describe(quota: Quota) -> str:
    """What was asked for, in words."""
    words = []
    if quota.compute_percent:
        words.append(f"{quota.compute_percent}% compute")
    if quota.memory_mib:
        words.append(f"{quota.memory_mib} MiB")
    return " and ".join(words) or "no share"


def left(where: Sequence[Room]) -> str:
    """What there is, in words, as many GPUs as a refusal has room for."""
    words = [
        f"{room.gpu[:12]}: {max(0, room.compute_percent)}% and {max(0, room.memory_mib)} MiB"
        for room in where[:_TEXT_GPUS]
    ]
    more = len(where) - len(words)
    return ", ".join(words) + (f", and {more} more GPUs" if more > 0 else "")
