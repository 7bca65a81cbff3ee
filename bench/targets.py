"""What is wanted, in one place: ratios to native that a run is judged by.

A target is met when the 95 % interval of the median ratio reaches it, in at least ten pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.bench.ratio import Ratio, geometric_mean
from gpupool.bench.workloads.base import GPU, LAUNCH, PINNED

FEWEST_PAIRS = 10
MET, NOT_MET, NO_FIGURE = "met", "not met", "no figure"


@dataclass(frozen=True)
class Target:
    """A limit on ratios in one mode: of each of the rows, or of their geometric mean."""

    what: str
    mode: str
    limit: float
    names: tuple[str, ...] = ()
    row_class: str = ""
    but: tuple[str, ...] = ()
    mean: bool = False
    idle: bool = False  # percent of a core, not a ratio

    def takes(self, name: str, row_class: str) -> bool:
        """Whether a row is among those it is about."""
        if name in self.but:
            return False
        if self.names or self.row_class:
            return name in self.names or row_class == self.row_class
        return True


TARGETS = (
    Target("geometric mean over all workloads", "shm", 1.00, mean=True),
    Target("GPU-bound", "shm", 1.02, row_class=GPU),
    Target("every row but .item()", "shm", 1.10, but=("item",)),
    Target(".item()", "shm", 1.3, names=("item",)),
    Target("LLM decoding, eager", "shm", 0.98, names=("llm_decode_eager",)),
    Target("ResNet-50 inference", "shm", 0.98, names=("resnet50_infer",)),
    Target("ResNet-50 training", "shm", 0.98, names=("resnet50_train",)),
    Target("event query", "shm", 0.5, names=("event_query",)),
    Target(
        "64 MiB pageable copies",
        "shm",
        0.8,
        names=("h2d_pageable_64MiB", "d2h_pageable_64MiB"),
    ),
    Target("pinned copies", "shm", 1.03, row_class=PINNED),
    Target("second start of a PyTorch program", "shm", 1.0, names=("start_torch_second",)),
    Target("idle, beyond the native process, percent of a core", "shm", 0.1, idle=True),
    Target("idle, beyond the native process, percent of a core", "tcp", 0.1, idle=True),
    Target("launch-bound", "tcp", 1.05, row_class=LAUNCH),
    Target(".item()", "tcp", 5.0, names=("item",)),
    Target("ResNet-50 training", "tcp+500us", 1.3, names=("resnet50_train",)),
)


@dataclass(frozen=True)
class Verdict:
    """How a run did on one target."""

    target: Target
    state: str
    shown: str  # the figures


def judge(
    ratios: dict[str, dict[str, Ratio]],
    classes: dict[str, str],
    idle_percent: dict[str, float] | None = None,
) -> list[Verdict]:
    """`ratios`: mode to row to ratio; `idle_percent`: mode to what an idle process takes of a core,
    with its worker.

    Modes that were not run have no figures. The driver's own threads run also while nobody asks for
    anything, natively as in a worker: only what is beyond that is the price of forwarding.
    """
    idle = idle_percent or {}
    return [
        _idle(target, idle.get(target.mode), idle.get("native"))
        if target.idle
        else _judge(target, ratios.get(target.mode, {}), classes)
        for target in TARGETS
    ]


def _idle(target: Target, percent: float | None, native: float | None) -> Verdict:
    if percent is None or native is None:
        return Verdict(target, NO_FIGURE, "")
    state = MET if percent - native <= target.limit else NOT_MET
    return Verdict(target, state, f"{percent - native:.3f} ({percent:.3f}, native {native:.3f})")


def _judge(target: Target, rows: dict[str, Ratio], classes: dict[str, str]) -> Verdict:
    taken = {name: each for name, each in rows.items() if target.takes(name, classes[name])}
    if target.mean:
        mean = geometric_mean(list(taken.values()))
        taken = {f"mean of {len(taken)}": mean} if mean else {}
    if not taken:
        return Verdict(target, NO_FIGURE, "")
    missed = {name: each for name, each in taken.items() if each.low > target.limit}
    few = any(each.pairs < FEWEST_PAIRS for each in taken.values())
    worst = missed or dict([max(taken.items(), key=lambda item: item[1].median)])
    shown = ", ".join(
        f"{name} {each.median:.3f} [{each.low:.3f}, {each.high:.3f}]"
        for name, each in worst.items()
    )
    if not missed and len(taken) > 1:
        shown = f"highest of {len(taken)}: {shown}"
    state = NOT_MET if missed else MET
    return Verdict(target, state + (f", fewer than {FEWEST_PAIRS} pairs" if few else ""), shown)
