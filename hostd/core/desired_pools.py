"""The pools that the controller wants GPUs to be in, asked for here as an operator would."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from gpupool.hostd.core.link import DesiredPool, GpuPlace, NodeGpu
from gpupool.hostd.core.operation import OperationState
from gpupool.hostd.core.placement import usable_mib
from gpupool.hostd.core.pool import PoolRecord, PoolState
from gpupool.hostd.core.pools import PoolRefusedError, PoolRequest, Pools
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

_PLACES = {
    PoolState.POOLED: GpuPlace.POOLED,
    PoolState.DRAINING: GpuPlace.DRAINING,
    PoolState.TO_NATIVE: GpuPlace.DRAINING,
    PoolState.NATIVE: GpuPlace.NATIVE,
    PoolState.TO_POOLED: GpuPlace.NATIVE,
}
_NATIVE = (PoolState.DRAINING, PoolState.TO_NATIVE, PoolState.NATIVE)


class DesiredPools:
    """Those of one host."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._refused: dict[str, str] = {}  # by GPU: why it was not even begun

    def apply(self, wanted: Sequence[DesiredPool]) -> None:
        """Asks for every switch that is not on its way. What cannot be is reported, and asked for
        again with the next Desired.
        """
        records = {one.uuid: one for one in self._pools.gpus}
        self._refused = {}
        for one in wanted:
            record = records.get(one.gpu)
            native = one.place is GpuPlace.NATIVE
            if record is None or (record.state in _NATIVE) == native:
                continue
            deadline_s = -1 if one.deadline_s is None else one.deadline_s
            try:
                self._pools.switch(PoolRequest(one.gpu, native, deadline_s=deadline_s))
            except (PoolRefusedError, PortError) as error:
                self._refused[one.gpu] = str(error)
                facts = {"gpu": one.gpu, "pool": one.place.value, "error": str(error)}
                log.warning("GPU not switched for the controller", extra=fields(facts))

    def gpus(self) -> tuple[NodeGpu, ...]:
        """Every GPU of this node, with its pool."""
        seen = {one.uuid: usable_mib(one) for one in self._pools.seen.gpus}
        return tuple(
            NodeGpu(
                uuid=record.uuid,
                model=record.name,
                memory_mib=seen.get(record.uuid, record.memory_mib),
                position=position,
                place=_PLACES[record.state],
                error=self._error(record),
            )
            for position, record in enumerate(self._pools.gpus)
            # One that was taken out while it was pooled is none.
            if record.uuid in seen or record.state is not PoolState.POOLED
        )

    def _error(self, record: PoolRecord) -> str:
        last = next((one for one in self._pools.operations if one.id == record.operation), None)
        failed = last is not None and last.state is OperationState.FAILED
        return self._refused.get(record.uuid) or (last.error if last and failed else "")
