"""What is new in a picture after one that the controller has taken. Pure.

Beside what changed, it speaks of every vGPU that is not as the controller wants it, and of those
that are being deleted, whether they are there or not: of these the controller cannot tell from
silence whether they are as before.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.hostd.core.link import GpuState, Picture, SessionFact, VgpuState


@dataclass(frozen=True, slots=True)
class Difference:
    """From the picture of the report `since` to a later one."""

    since: int
    applied_generation: int
    gpus: tuple[GpuState, ...] = ()
    vgpus: tuple[VgpuState, ...] = ()
    vgpus_gone: tuple[str, ...] = ()
    sessions: tuple[SessionFact, ...] = ()
    sessions_gone: tuple[SessionFact, ...] = ()


def difference(since: int, before: Picture, now: Picture) -> Difference:
    """What the controller has to hear."""
    gpus, vgpus, sessions = set(before.gpus), set(before.vgpus), set(before.sessions)
    there = {one.id for one in now.vgpus}
    running = {(one.id, one.vgpu) for one in now.sessions}
    gone = {one.id for one in before.vgpus} | now.unsettled
    return Difference(
        since=since,
        applied_generation=now.applied_generation,
        gpus=tuple(one for one in now.gpus if one not in gpus),
        vgpus=tuple(one for one in now.vgpus if one not in vgpus or one.id in now.unsettled),
        vgpus_gone=tuple(sorted(gone - there)),
        sessions=tuple(one for one in now.sessions if one not in sessions),
        sessions_gone=tuple(one for one in before.sessions if (one.id, one.vgpu) not in running),
    )
