"""What has to be done so that a node has what the controller wants: desired and actual in, steps
out. Pure.

Rules: a session that runs is ended only when its vGPU is being deleted. A vGPU that is no longer
wanted here but still has sessions (its node was silent and somebody else got it) stays until they
end, as an orphan: nobody new may use it, and what it holds counts as the node's own, so that the
controller does not give it out again. What frees room comes before what takes some.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpupool.hostd.core.link import Desired, DesiredVgpu
from gpupool.hostd.core.vgpu import Quota


@dataclass(frozen=True, slots=True)
class Held:
    """A vGPU of the controller's that this node has."""

    id: str  # the controller's
    gpu: str
    quota: Quota
    sessions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Resize:
    """Another quota for one that is there."""

    id: str
    quota: Quota


@dataclass(frozen=True, slots=True)
class Steps:
    """To be done in the order of the fields."""

    end: tuple[int, ...] = ()  # sessions
    drop: tuple[str, ...] = ()
    resize: tuple[Resize, ...] = ()  # those that shrink first
    place: tuple[DesiredVgpu, ...] = ()
    orphans: frozenset[str] = frozenset()  # stay as they are


def reconcile(desired: Desired, held: Sequence[Held]) -> Steps:
    """What to do next. Done again after it was done, it is nothing."""
    wanted = {one.id: one for one in desired.vgpus}
    end: list[int] = []
    drop: list[str] = []
    resize: list[Resize] = []
    orphans: set[str] = set()
    staying: set[str] = set()
    for one in held:
        goal = wanted.get(one.id)
        if goal is not None and goal.gpu == one.gpu:
            staying.add(one.id)
            if goal.quota != one.quota:
                resize.append(Resize(one.id, goal.quota))
        elif not one.sessions:
            drop.append(one.id)
        else:
            orphans.add(one.id)
            staying.add(one.id)  # on another GPU only after this one is empty
            if one.id in desired.deleting:
                end += one.sessions
    now = {one.id: one.quota for one in held}
    resize.sort(key=lambda step: _grows(now[step.id], step.quota))
    place = tuple(one for one in desired.vgpus if one.id not in staying)
    return Steps(tuple(end), tuple(drop), tuple(resize), place, frozenset(orphans))


def _grows(before: Quota, after: Quota) -> bool:
    return after.compute_percent > before.compute_percent or after.memory_mib > before.memory_mib
