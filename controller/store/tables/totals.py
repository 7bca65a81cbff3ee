"""Sums over everything, for the metrics."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from gpupool.controller.core.ports import Totals
from gpupool.controller.store.models import GpuRow, NodeRow, SessionRow, VgpuRow


def totals(connection: Connection) -> Totals:
    """A few scans; asked for as often as Prometheus does."""
    nodes = select(NodeRow.state, func.count()).group_by(NodeRow.state)
    vgpus = select(VgpuRow.state, func.count()).group_by(VgpuRow.state)
    sums = func.sum(GpuRow.compute_held_percent), func.sum(GpuRow.memory_held_mib)
    gpus = connection.execute(select(func.count(), *sums).select_from(GpuRow)).one()
    usable = select(func.count()).select_from(GpuRow).where(GpuRow.usable)
    sessions = select(func.count()).select_from(SessionRow)
    return Totals(
        nodes={row[0]: row[1] for row in connection.execute(nodes)},
        gpus=gpus[0],
        gpus_usable=connection.execute(usable).scalar_one(),
        compute_held_percent=int(gpus[1] or 0),
        memory_held_mib=int(gpus[2] or 0),
        vgpus={row[0]: row[1] for row in connection.execute(vgpus)},
        sessions=connection.execute(sessions).scalar_one(),
    )
