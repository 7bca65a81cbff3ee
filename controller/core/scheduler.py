"""Which GPU: filter, score, and say why not.

The filter is a query (`Gpus.candidates`), which hands over a few dozen GPUs that fit, the best
first by one column; the score looks at both compute and memory of these. Free functions, no state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpupool.controller.core.errors import Kind, RefusedError
from gpupool.controller.core.gpu import FULL_PERCENT
from gpupool.controller.core.vgpu import Selector, Share, Strategy

# Why a GPU was left out, in the order in which they are looked for: each GPU counts once.
REASONS: Mapping[str, str] = {
    "node-lost": "on a node that is silent",
    "node-cordoned": "on a node that takes nothing new",
    "missing": "no longer in the node",
    "unhealthy": "unhealthy",
    "not-pooled": "not in the pooled pool",
    "unlicensed": "beyond the licence",
    "node": "on another node than the one asked for",
    "label": "on a node without the labels asked for",
    "model": "of another model than those asked for",
    "gpu-memory": "smaller than asked for",
    "compute": "without enough compute share",
    "memory": "without enough memory",
    "fits": "that would fit alone",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the filter looks for: room for one share on a GPU that the selector allows."""

    share: Share
    selector: Selector
    strategy: Strategy
    node_ids: tuple[str, ...] = ()  # only on these, by id; empty: anywhere
    not_gpus: tuple[str, ...] = ()  # only on others


@dataclass(frozen=True, slots=True)
class Candidate:
    """A GPU with room."""

    gpu_id: str
    gpu_uuid: str
    node_id: str
    node_name: str
    endpoint: str
    memory_mib: int
    compute_free_percent: int
    memory_free_mib: int

    def fits(self, share: Share) -> bool:
        """A share of 0 needs no room."""
        return (
            share.compute_percent == 0 or self.compute_free_percent >= share.compute_percent
        ) and (share.memory_mib == 0 or self.memory_free_mib >= share.memory_mib)

    def without(self, share: Share) -> Candidate:
        """After the share has been given out."""
        return replace(
            self,
            compute_free_percent=self.compute_free_percent - share.compute_percent,
            memory_free_mib=self.memory_free_mib - share.memory_mib,
        )


@dataclass(frozen=True, slots=True)
class Shortfall:
    """How many GPUs were left out for one reason, and the most that any of them has free."""

    reason: str
    gpus: int
    most_compute_percent: int
    most_memory_mib: int
    node_name: str = ""  # "": summed over all nodes


def emptiness(candidate: Candidate) -> float:
    """0 (full) to 2 (empty): compute and memory count alike."""
    return (
        candidate.compute_free_percent / FULL_PERCENT
        + candidate.memory_free_mib / candidate.memory_mib
    )


def best(candidates: Iterable[Candidate], share: Share, strategy: Strategy) -> Candidate | None:
    """The one to take, or None where none fits. Ties go to the smaller id."""
    fitting = [candidate for candidate in candidates if candidate.fits(share)]
    if not fitting:
        return None
    sign = 1 if strategy is Strategy.BINPACK else -1
    return min(fitting, key=lambda one: (sign * emptiness(one), one.gpu_id))


def best_group(
    candidates: Iterable[Candidate], shares: Sequence[Share], strategy: Strategy, *, distinct: bool
) -> list[Candidate] | None:
    """One GPU for each share, all on one node; None where no node has room for all.

    Largest first, each on its best GPU: not always the tightest packing there is, but it finds one
    whenever the GPUs are distinct and equal, and it needs no search.
    """
    nodes: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        nodes.setdefault(candidate.node_id, []).append(candidate)
    found = []
    for node_id in sorted(nodes):
        placed = _pack(nodes[node_id], shares, strategy, distinct=distinct)
        if placed is not None:
            left = sum(emptiness(each) for each in nodes[node_id]) / len(nodes[node_id])
            found.append((left if strategy is Strategy.BINPACK else -left, node_id, placed))
    return min(found, key=lambda each: each[:2])[2] if found else None


def _pack(
    gpus: Sequence[Candidate], shares: Sequence[Share], strategy: Strategy, *, distinct: bool
) -> list[Candidate] | None:
    room = {gpu.gpu_id: gpu for gpu in gpus}
    chosen: dict[int, Candidate] = {}
    order = sorted(
        range(len(shares)),
        key=lambda index: (-shares[index].compute_percent, -shares[index].memory_mib, index),
    )
    for index in order:
        taken = best(room.values(), shares[index], strategy)
        if taken is None:
            return None
        chosen[index] = taken
        if distinct:
            del room[taken.gpu_id]
        else:
            room[taken.gpu_id] = taken.without(shares[index])
    return [chosen[index] for index in range(len(shares))]


def refusal(
    shares: Sequence[Share],
    shortfalls: Sequence[Shortfall],
    nodes: Sequence[Shortfall],
    *,
    same_node: bool,
) -> RefusedError:
    """The answer when nothing fits: which GPUs were looked at and what each of them lacked.

    `nodes` is told to operators only: a tenant learns how much is missing, not who runs where.
    """
    asked = ", ".join(
        f"{share.compute_percent} % and {share.memory_mib} MiB" for share in shares[:4]
    )
    if len(shares) > 4:
        asked += f" and {len(shares) - 4} more"
    where = " on GPUs of one node" if len(shares) > 1 and same_node else ""
    if not shortfalls:
        why = "there are no GPUs at all: has any node registered?"
    else:
        order = list(REASONS)
        known = sorted(shortfalls, key=lambda each: order.index(each.reason))
        why = "; ".join(_tell(each) for each in known)
    return RefusedError(
        Kind.NO_ROOM,
        f"Nothing has room for {asked}{where}. Of the GPUs: {why}.",
        {
            "lacking": [_facts(each) for each in shortfalls],
            **({"nodes": [_facts(each) for each in nodes]} if nodes else {}),
        },
    )


def _tell(one: Shortfall) -> str:
    text = f"{one.gpus} {REASONS[one.reason]}"
    if one.reason == "compute":
        text += f" (the most that one has free is {one.most_compute_percent} %)"
    if one.reason == "memory":
        text += f" (the most that one has free is {one.most_memory_mib} MiB)"
    return text


def _facts(one: Shortfall) -> dict[str, object]:
    facts: dict[str, object] = {
        "reason": one.reason,
        "gpus": one.gpus,
        "most_compute_free_percent": one.most_compute_percent,
        "most_memory_free_mib": one.most_memory_mib,
    }
    return {"node": one.node_name, **facts} if one.node_name else facts
