"""Who is at the other end of a connection."""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.hostd.core.admission import Door
from gpupool.hostd.core.vm import owner_of_vm


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel says; `pid` 0 and `uid` -1 where it does not."""

    pid: int = 0
    uid: int = -1
    pidfd: int | None = None  # borrowed
    address: str = ""


def owner_of(peer: Peer, door: Door) -> str:
    """Whose sessions a guest sees through NVML: its tenant's, and over TCP only those of its own
    address, as process ids of another machine would mean nothing. A virtual machine sees its own.
    """
    if door.vm:
        return owner_of_vm(door.vm)
    who = f"uid {peer.uid}" if not peer.address else peer.address.rpartition(":")[0]
    return f"{door.name} {who}"
