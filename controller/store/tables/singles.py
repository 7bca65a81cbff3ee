"""One reserved vGPU in one statement of PostgreSQL: see core/single.py.

The statement does what `allocation.create` does: it charges the tenant, takes room on the best
GPU, counts the node's generation and adds the vGPU; where anything forbids that, it does nothing
and answers no row. It runs behind the gate, so what it reads is what is. All of its parts see the
same picture (https://www.postgresql.org/docs/15/queries-with.html, 7.8.4), and each writes another
table.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    Dialect,
    Float,
    Select,
    String,
    any_,
    bindparam,
    cast,
    exists,
    insert,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql

from gpupool.controller.core.allocation import CANDIDATES as SCORED
from gpupool.controller.core.allocation import use_of
from gpupool.controller.core.gpu import FULL_PERCENT
from gpupool.controller.core.scheduler import Candidate
from gpupool.controller.core.single import Single
from gpupool.controller.core.vgpu import State, Vgpu
from gpupool.controller.store.models import GpuRow, NodeRow, TenantRow, VgpuRow
from gpupool.controller.store.tables.demands import Shape, demands, fitting, order, shape_of
from gpupool.controller.store.tables.gpus import CANDIDATES, moved
from gpupool.controller.store.tables.tenants import ALLOWED, RESOURCES
from gpupool.controller.store.tables.vgpus import row_of

_PLACE = [column.name for column in CANDIDATES.selected_columns]  # in the order of a Candidate
_NAMED = re.compile(r"%\((\w+)\)s")
# What a row of vgpus has from the place that was found, and not from whoever asks.
_FOUND = ("tenant_id", "gpu_id", "gpu_uuid", "node_id", "node_name", "generation")


@lru_cache(maxsize=256)
def statement(shape: Shape) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """The text for such demands, the values of its constants, and the names of all values in the
    order of their numbers. Building it costs far more than running it.
    """
    owner, few = _owner().cte("owner"), _few(shape).cte("few")
    emptiness = (  # as scheduler.emptiness has it
        cast(few.c.compute_free_percent, Float) / FULL_PERCENT
        + cast(few.c.memory_free_mib, Float) / few.c.memory_mib
    )
    place = (
        select(few, owner.c.tenant_id)
        .select_from(few.join(owner, true()))
        .order_by(emptiness.desc() if shape.spread else emptiness, few.c.id)
        .limit(literal_column("1"))
        .cte("place")
    )
    held = (
        update(GpuRow)
        .where(GpuRow.id == place.c.id)
        .values(moved(1))
        .returning(GpuRow.id.label("gpu_id"))
        .cte("held")
    )
    charged = (
        update(TenantRow)
        .where(TenantRow.id == place.c.tenant_id)
        .values({used: used + bindparam(name) for used, _, name in RESOURCES})
        .returning(TenantRow.id.label("tenant_id"))
        .cte("charged")
    )
    bumped = (
        update(NodeRow)
        .where(NodeRow.id == place.c.node_id)
        .values(generation=NodeRow.generation + 1)
        .returning(NodeRow.generation)
        .cte("bumped")
    )
    columns = {column.name: column for column in VgpuRow.__table__.c}
    given = {
        name: bindparam(f"its_{name}", type_=column.type)
        for name, column in columns.items()
        if name not in _FOUND
    }
    there = (place.c.tenant_id, place.c.id, place.c.uuid, place.c.node_id, place.c.name)
    rows = select(*given.values(), *there, bumped.c.generation).select_from(
        place.join(bumped, true()).join(held, true()).join(charged, true())
    )
    made = (
        insert(VgpuRow)
        .from_select([*given, *_FOUND], rows, include_defaults=False)
        .returning(VgpuRow.generation)
        .cte("made")
    )
    whole = select(
        place.c.tenant_id, made.c.generation, *(place.c[name] for name in _PLACE)
    ).select_from(place.join(made, true()))
    # SQLAlchemy gives its dialects' classes no types.
    dialect: Dialect = postgresql.psycopg.dialect()  # type: ignore[no-untyped-call]
    compiled = whole.compile(dialect=dialect)
    constants = {name: value for name, value in compiled.params.items() if value is not None}
    # Numbers, as the server has them: the driver would look for names in it each time.
    text = str(compiled)
    names = tuple(dict.fromkeys(_NAMED.findall(text)))
    numbers = {name: f"${number}" for number, name in enumerate(names, 1)}
    return _NAMED.sub(lambda found: numbers[found[1]], text), constants, names


def _owner() -> Select[Any]:
    """The tenant, if it may have one more of that name and size. An id comes before a name."""
    named = exists().where(VgpuRow.tenant_id == TenantRow.id, VgpuRow.name == bindparam("its_name"))
    unlimited = bindparam("memory_mib") == 0
    first = (
        select(TenantRow.id)
        .where(or_(TenantRow.id == bindparam("tenant"), TenantRow.name == bindparam("tenant")))
        .order_by((TenantRow.id == bindparam("tenant")).desc())
        .limit(literal_column("1"))
        .scalar_subquery()
    )
    return select(TenantRow.id.label("tenant_id")).where(
        TenantRow.id == first,
        *ALLOWED,
        ~named,
        ~(unlimited & TenantRow.quota_memory_mib.is_not(None)),
    )


def _few(shape: Shape) -> Any:
    """The candidates."""
    found = CANDIDATES.where(*fitting(replace(shape, models=False)))
    if shape.models:
        models = bindparam("models", type_=ARRAY(String))
        found = found.where(GpuRow.model == any_(models))
    return found.order_by(*order(shape)).limit(literal_column(str(SCORED)))


def asked(one: Single[Any], draft: Vgpu) -> tuple[str, list[Any]]:
    """Statement and values."""
    text, constants, names = statement(shape_of(one.wanted))
    row = row_of(draft)
    values = {f"its_{name}": value for name, value in row.items() if name not in _FOUND}
    held, use = draft.share, use_of([draft.share], 1)
    values |= {
        "its_selector": json.dumps(row["selector"]),
        "its_state": State.PLACED.value,
        "its_compute_held_percent": held.compute_percent,
        "its_memory_held_mib": held.memory_mib,
        "tenant": one.tenant,
        "vgpus": use.vgpus,
        "compute_percent": use.compute_percent,
        "memory_mib": use.memory_mib,
    }
    every = {**constants, **demands(one.wanted), **values}
    return text, [every[name] for name in names]


def place_of(row: Any) -> tuple[str, int, Candidate]:
    """The tenant, the node's generation, and where."""
    return row[0], row[1], Candidate(*row[2:])
