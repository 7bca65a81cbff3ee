"""What a replica does by itself, every two seconds: looks for silent nodes; now and then it forgets
what is too old, and applies a licence that has changed.

Every replica does it. A node is marked as lost in a transaction that looks whether it has been
heard since, so several replicas do no harm to each other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gpupool.controller.core import drain, fleet
from gpupool.controller.core.errors import StoreError
from gpupool.controller.core.lease import Leases
from gpupool.controller.core.licence import Licence
from gpupool.controller.core.ports import Store, Tables

log = logging.getLogger("gpupool.controller.sweeper")
PERIOD_S = 2.0
_TIDY_EVERY = 150  # sweeps
_DAY_MS = 86_400_000
_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Keep:
    """How long what is kept."""

    events_days: int
    audit_days: int
    answers_hours: int


class Sweeper:
    """One thread."""

    def __init__(
        self, store: Store, licence: Callable[[], Licence], keep: Keep, lease_s: float
    ) -> None:
        self._store = store
        self._licence = licence
        self._keep = keep
        self._leases = Leases(lease_s, most_step_s=2.5 * PERIOD_S)
        self._drains = drain.Deadlines()
        self._applied: Licence | None = None
        self._count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends, after the sweep that goes on."""
        self._stop.set()
        self._thread.join(timeout=15)

    def sweep(self) -> list[str]:
        """One look; the nodes that were lost. Raises StoreError."""
        beats = self._store.read(lambda tables: tables.nodes.beats())
        lost = []
        for node_id, beat in self._leases.look(beats, time.monotonic()):

            def lose(tables: Tables, node_id: str = node_id, beat: int = beat) -> bool:
                return fleet.lose(tables, node_id, beat)

            if self._store.change(lose):
                log.warning("node %s is silent: lost", node_id)
                lost.append(node_id)
        self._end_drains()
        licence = self._licence()
        if licence != self._applied:
            beyond = self._store.change(lambda tables: tables.gpus.licence(licence.gpus))
            self._applied = licence
            if beyond:
                log.warning("%d GPUs are beyond the licence", beyond)
        if self._count % _TIDY_EVERY == 0:
            self._store.change(self._forget)
        self._count += 1
        return lost

    def _end_drains(self) -> None:
        """Ends the sessions of nodes that have been draining for as long as they may."""
        draining = self._store.read(lambda tables: (tables.nodes.draining(), tables.now_ms))
        for node_id, until_ms in self._drains.look(*draining, time.monotonic()):

            def end(tables: Tables, node_id: str = node_id, until_ms: int = until_ms) -> int:
                return drain.end_sessions(tables, node_id, until_ms)

            # Those that came in meanwhile are ended with the next sweep.
            if ended := self._store.change(end):
                log.info("node %s: its drain's deadline ends %d sessions", node_id, ended)

    def _forget(self, tables: Tables) -> int:
        now_ms = tables.now_ms
        return tables.journal.forget(
            now_ms - self._keep.events_days * _DAY_MS,
            now_ms - self._keep.audit_days * _DAY_MS,
            now_ms - self._keep.answers_hours * _HOUR_MS,
        )

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            try:
                self.sweep()
            except StoreError as error:
                log.warning("the database does not answer: %s", error)
            except Exception:
                log.exception("a sweep failed")
