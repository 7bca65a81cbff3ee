"""What a GPU has to be to be given out, as conditions; and why one is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, case, literal, not_, select

from gpupool.controller.core.gpu import Pool
from gpupool.controller.core.node import NodeState
from gpupool.controller.core.scheduler import Wanted
from gpupool.controller.core.vgpu import Strategy
from gpupool.controller.store.models import GpuRow, LabelRow, NodeRow


@dataclass(frozen=True, slots=True)
class Shape:
    """Which demands a filter has, without their values: what a statement is kept by.

    Building one costs more than running it.
    """

    compute: bool
    memory: bool
    node: bool
    labels: int
    models: bool
    gpu_memory: bool
    node_ids: bool
    not_gpus: bool
    spread: bool


def shape_of(wanted: Wanted) -> Shape:
    """That of these demands."""
    selector = wanted.selector
    return Shape(
        compute=wanted.share.compute_percent > 0,
        memory=wanted.share.memory_mib > 0,
        node=bool(selector.node),
        labels=len(selector.labels),
        models=bool(selector.models),
        gpu_memory=selector.gpu_memory_mib > 0,
        node_ids=bool(wanted.node_ids),
        not_gpus=bool(wanted.not_gpus),
        spread=wanted.strategy is Strategy.SPREAD,
    )


def demands(wanted: Wanted) -> dict[str, Any]:
    """The values; those that a statement has no place for are not looked at."""
    selector = wanted.selector
    found: dict[str, Any] = {
        "compute": wanted.share.compute_percent,
        "memory": wanted.share.memory_mib,
    }
    if selector.node:
        found["node"] = selector.node
    for number, (key, value) in enumerate(sorted(selector.labels.items())):
        found |= {f"key{number}": key, f"value{number}": value}
    if selector.models:
        found["models"] = list(selector.models)
    if selector.gpu_memory_mib:
        found["gpu_memory"] = selector.gpu_memory_mib
    if wanted.node_ids:
        found["node_ids"] = list(wanted.node_ids)
    if wanted.not_gpus:
        found["not_gpus"] = list(wanted.not_gpus)
    return found


def order(shape: Shape) -> list[ColumnElement[int]]:
    """That of the candidates: an index has it."""
    room = GpuRow.compute_free_percent, GpuRow.memory_free_mib
    return [column.desc() if shape.spread else column.asc() for column in room]


def _has_label(number: int) -> ColumnElement[bool]:
    return (
        select(literal(1))
        .where(
            LabelRow.node_id == GpuRow.node_id,
            LabelRow.key == bindparam(f"key{number}"),
            LabelRow.value == bindparam(f"value{number}"),
        )
        .exists()
    )


def _selected(shape: Shape) -> Sequence[tuple[str, ColumnElement[bool]]]:
    """What each part of a selector demands, with the name of the reason where it is not met."""
    found: list[tuple[str, ColumnElement[bool]]] = []
    if shape.node:
        found.append(("node", NodeRow.name == bindparam("node")))
    found += [("label", _has_label(number)) for number in range(shape.labels)]
    if shape.models:
        found.append(("model", GpuRow.model.in_(bindparam("models", expanding=True))))
    if shape.gpu_memory:
        found.append(("gpu-memory", GpuRow.memory_mib >= bindparam("gpu_memory")))
    return found


def fitting(shape: Shape) -> list[ColumnElement[bool]]:
    """What a GPU has to be."""
    found: list[ColumnElement[bool]] = [GpuRow.usable.is_(True)]
    if shape.compute:
        found.append(GpuRow.compute_free_percent >= bindparam("compute"))
    if shape.memory:
        found.append(GpuRow.memory_free_mib >= bindparam("memory"))
    found += [demand for _, demand in _selected(shape)]
    if shape.node_ids:
        found.append(GpuRow.node_id.in_(bindparam("node_ids", expanding=True)))
    if shape.not_gpus:
        found.append(GpuRow.id.not_in(bindparam("not_gpus", expanding=True)))
    return found


def reason(shape: Shape) -> ColumnElement[str]:
    """Why a GPU is left out; `fits` where it is not. In the order of scheduler.REASONS."""
    pooled = and_(GpuRow.pool == Pool.POOLED.value, GpuRow.pool_wanted == Pool.POOLED.value)
    reasons: list[tuple[ColumnElement[bool], str]] = [
        (NodeRow.state != NodeState.READY.value, "node-lost"),
        (NodeRow.cordoned.is_(True), "node-cordoned"),
        (not_(GpuRow.present), "missing"),
        (not_(GpuRow.healthy), "unhealthy"),
        (not_(pooled), "not-pooled"),
        (not_(GpuRow.licensed), "unlicensed"),
        *((not_(demand), reason) for reason, demand in _selected(shape)),
    ]
    if shape.compute:
        reasons.append((GpuRow.compute_free_percent < bindparam("compute"), "compute"))
    if shape.memory:
        reasons.append((GpuRow.memory_free_mib < bindparam("memory"), "memory"))
    return case(*reasons, else_="fits")
