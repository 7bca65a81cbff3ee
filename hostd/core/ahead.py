"""Workers started ahead of need: which tenants have one waiting, and for how long.

A worker belongs to one tenant from its start, because it runs as that tenant's user; so they are
kept for tenants that were here lately. Each serves one client only. What one holds while it waits:
a process with the driver initialised, no processor time, and with `context` the first GPU's
context, which takes hundreds of MiB of that GPU's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from gpupool.hostd.core.gpu import Inventory
from gpupool.hostd.core.ports import Clock, WorkerProcesses


@dataclass(frozen=True, slots=True)
class AheadSettings:
    """The section [ahead] of the configuration."""

    workers: int = 2  # for each tenant; 0: none
    most: int = 8  # on this host
    keep_s: int = 300  # after the tenant's last session began or ended
    context: bool = False


# A program that has just started is given time to start: the driver serialises much of both.
_DELAY_S = 2.0


class Ahead:
    """Decides; `WorkerProcesses` holds the processes."""

    def __init__(self, settings: AheadSettings, workers: WorkerProcesses, clock: Clock) -> None:
        self._settings = settings
        self._workers = workers
        self._clock = clock
        self._inventory = Inventory((), "")
        # By tenant; while one is here exactly one `_forget_old` is due for it, however many
        # sessions come and go.
        self._last_seen_s: dict[int, float] = {}
        self._gone: set[int] = set()  # of these, those whose next session will not come soon

    def session_started(self, tenant: int, inventory: Inventory) -> None:
        """A session of that tenant has begun, perhaps with a worker that waited."""
        self._inventory = inventory
        self._gone.discard(tenant)
        self._seen(tenant)
        if self._settings.workers:
            self._clock.later(_DELAY_S, partial(self._fill, tenant))

    def session_ended(self, tenant: int, inventory: Inventory) -> None:
        """The next one may begin at once, as when a program is run again."""
        self._inventory = inventory
        self._seen(tenant)
        self._fill(tenant)

    def tenant_gone(self, tenant: int) -> None:
        """It was a virtual machine that is released; sessions of its may still be ending."""
        if tenant in self._last_seen_s:
            self._gone.add(tenant)
            self._workers.discard(tenant)

    def gpus_changed(self, inventory: Inventory) -> None:
        """Other GPUs, or another driver, may be given out from now on: those that wait would fit
        nobody.
        """
        before = self._inventory
        self._inventory = inventory
        same_gpus = [gpu.uuid for gpu in before.gpus] == [gpu.uuid for gpu in inventory.gpus]
        if not same_gpus or before.library != inventory.library:
            self.end_all()

    def end_all(self) -> None:
        """Nobody waits any more; the next session's begin or end starts others."""
        for tenant in self._last_seen_s:
            self._workers.discard(tenant)

    def _seen(self, tenant: int) -> None:
        if not self._settings.workers:
            return
        if tenant not in self._last_seen_s:
            self._clock.later(self._settings.keep_s, partial(self._forget_old, tenant))
        self._last_seen_s[tenant] = self._clock.monotonic_s()

    def _fill(self, tenant: int) -> None:
        settings, inventory = self._settings, self._inventory
        seen = tenant in self._last_seen_s and tenant not in self._gone
        if not seen or not inventory.gpus:
            return
        devices = tuple(gpu.uuid for gpu in inventory.gpus)
        while (
            self._workers.prepared(tenant) < settings.workers
            and self._workers.prepared() < settings.most
        ):
            if not self._workers.prepare(
                tenant, inventory.library, devices, context=settings.context
            ):
                return

    def _forget_old(self, tenant: int) -> None:
        away_s = self._clock.monotonic_s() - self._last_seen_s[tenant]
        if away_s < self._settings.keep_s:
            rest_s = self._settings.keep_s - away_s
            self._clock.later(rest_s, partial(self._forget_old, tenant))
            return
        del self._last_seen_s[tenant]
        self._gone.discard(tenant)
        self._workers.discard(tenant)
