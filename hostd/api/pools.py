"""The admin API's methods about pools and operations, and the task that carries switches out.

    gpu_list {}                          -> {"gpus": [GPU, ...]}
    gpu_pool {"uuid": "GPU-...",         -> {"operation": OPERATION}   (begun; ask for its end)
              "pool": "native" | "pooled",
              "kind": "container" | "vfio",   (native only; absent: pool.native_kind)
              "deadline_s": 60,               (absent or null: wait for sessions; 0: end them now)
              "force": false}
    operation_list {}                    -> {"operations": [OPERATION, ...]}   (oldest first)
    operation_show {"operation": 3}      -> {"operation": OPERATION}
    operation_cancel {"operation": 3}    -> {"operation": OPERATION}   (while its GPU drains)

GPU: {"uuid", "name", "memory_mib", "source": "nvidia" | "software", "pci_address",
      "pool": "pooled" | "native"       (pooled until it is native, native until it is pooled),
      "state": "pooled" | "draining" | "to_native" | "native" | "to_pooled",
      "kind": "" | "container" | "vfio" (empty while pooled),
      "present": true                   (the driver shows it; false with vfio),
      "sessions": [3, 7], "cdi": "" | "gpupool.dev/gpu=GPU-...",
      "operation": null | OPERATION     (the last one),
      "trouble": ""                     (why it does not get on, in words)}
OPERATION: {"id": 3, "kind": "gpu-pool", "target": "GPU-...", "goal": "native" | "pooled",
      "state": "running" | "succeeded" | "failed" | "cancelled",
      "progress": "draining: waits for sessions 3, 7", "percent": 0, "error": "",
      "started": "2026-11-23T02:10:00Z", "ended": ""}

A request that cannot be is answered with {"ok": false, "error": "..."}: what is wrong, what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from gpupool.hostd.core.pool import NativeKind, PoolRecord, PoolState
from gpupool.hostd.core.pool_steps import Machine, Outcome, perform
from gpupool.hostd.core.pools import PoolRequest, Pools
from gpupool.hostd.core.ports import PortError

log = logging.getLogger("gpupool.hostd")

_CDI_KIND = "gpupool.dev/gpu"
_AFTER_ACCIDENT_S = 5.0
_LONGEST_DEADLINE_S = 30 * 86400


class PoolMethods:
    """Answers requests. Raises ValueError (PoolRefusedError is one) with a text for the caller."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def by_name(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """For Admin."""
        return {
            "gpu_list": self._list,
            "gpu_pool": self._pool,
            "operation_list": self._operations,
            "operation_show": self._show,
            "operation_cancel": self._cancel,
        }

    def _list(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"gpus": [self._gpu(one) for one in self._pools.gpus]}

    def _gpu(self, record: PoolRecord) -> dict[str, Any]:
        native = record.state in (PoolState.NATIVE, PoolState.TO_POOLED)
        known = {one.id: one for one in self._pools.operations}
        operation = known.get(record.operation)
        return {
            "uuid": record.uuid,
            "name": record.name,
            "memory_mib": record.memory_mib,
            "source": record.source,
            "pci_address": record.pci_address,
            "pool": "native" if native else "pooled",
            "state": record.state.value,
            "kind": "" if record.state is PoolState.POOLED else record.kind.value,
            "present": self._pools.present(record.uuid),
            "sessions": list(self._pools.sessions(record.uuid)),
            "cdi": f"{_CDI_KIND}={record.uuid}" if record.state is PoolState.NATIVE else "",
            "operation": operation.as_dict() if operation is not None else None,
            "trouble": self._pools.trouble(record.uuid),
        }

    def _pool(self, request: dict[str, Any]) -> dict[str, Any]:
        uuid, pool = request.get("uuid"), request.get("pool")
        kind, force = request.get("kind"), request.get("force", False)
        deadline_s = request.get("deadline_s")
        if not isinstance(uuid, str) or pool not in ("native", "pooled"):
            raise ValueError('gpu_pool needs a uuid, and a pool: "native" or "pooled"')
        if kind not in (None, "container", "vfio") or type(force) is not bool:
            raise ValueError('kind is "container" or "vfio", force is true or false')
        if deadline_s is not None and (
            type(deadline_s) is not int or not 0 <= deadline_s <= _LONGEST_DEADLINE_S
        ):
            raise ValueError(f"deadline_s is a whole number from 0 to {_LONGEST_DEADLINE_S}")
        wanted = PoolRequest(
            uuid,
            native=pool == "native",
            kind=None if kind is None else NativeKind(kind),
            deadline_s=-1 if deadline_s is None else deadline_s,
            force=force,
        )
        return self._answer(lambda: self._pools.switch(wanted).as_dict())

    def _operations(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"operations": [one.as_dict() for one in self._pools.operations]}

    def _show(self, request: dict[str, Any]) -> dict[str, Any]:
        number = _number(request)
        return self._answer(lambda: self._pools.operation(number).as_dict())

    def _cancel(self, request: dict[str, Any]) -> dict[str, Any]:
        number = _number(request)
        return self._answer(lambda: self._pools.cancel(number).as_dict())

    def _answer(self, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return {"operation": ask()}
        except PortError as error:  # it cannot be written down, so it is not begun
            raise ValueError(str(error)) from error


def _number(request: dict[str, Any]) -> int:
    number = request.get("operation")
    if type(number) is not int:
        raise ValueError("an operation is named by its number: see operation_list")
    return number


class PoolTask:
    """Performs steps outside the event loop, one at a time and never during a look at the machine:
    NVML has every card open while it looks.
    """

    def __init__(self, pools: Pools, machine: Machine) -> None:
        self._pools = pools
        self._machine = machine
        self._wake = asyncio.Event()
        self.alone = asyncio.Lock()  # with the machine's GPUs

    def wake(self) -> None:
        """Something has changed: a session has ended, something was asked for."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled. A step that is being done then is done again by the next hostd."""
        while True:
            self._wake.clear()
            try:
                while await self._step():
                    pass
            except Exception:  # an accident is logged with its trace, and must not end the daemon
                log.exception("a switch between the pools failed")
                await asyncio.sleep(_AFTER_ACCIDENT_S)
                continue
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._pools.moves.due_s())

    async def _step(self) -> bool:
        """Whether there was one to do."""
        work = self._pools.moves.next_work()
        if work is None:
            return False
        async with self.alone:
            try:
                outcome = await asyncio.to_thread(perform, work, self._machine)
            except Exception as error:  # logged; the GPU must not be stuck without a word
                log.exception("a step of a GPU's switch failed")
                outcome = Outcome(f"hostd failed: {error!r}; its log says more")
        self._pools.moves.settle(work, outcome)
        return True
