"""What Prometheus is told: counts, no names of tenants. Units are in the names."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gpupool.controller.core.ports import Totals

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_PREFIX = "gpupool_controller"


class Metrics:
    """One replica's."""

    def __init__(self, retries: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            f"{_PREFIX}_requests", "answers", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            f"{_PREFIX}_request_duration_seconds",
            "from the first byte of a request to its answer",
            ["method", "route"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        Gauge(
            f"{_PREFIX}_database_retries_total", "transactions tried again", registry=self.registry
        ).set_function(lambda: float(retries()))
        self.followers = Gauge(
            f"{_PREFIX}_event_followers", "open streams of events", registry=self.registry
        )
        self._nodes = self._gauge("nodes", "nodes", ["state"])
        self._gpus = self._gauge("gpus", "GPUs", ["usable"])
        self._compute = self._gauge("compute_held_percent", "sum of the shares held", [])
        self._memory = self._gauge("memory_held_mebibytes", "sum of the memory held", [])
        self._vgpus = self._gauge("vgpus", "vGPUs", ["state"])
        self._sessions = self._gauge("sessions", "sessions", [])

    def _gauge(self, name: str, text: str, labels: list[str]) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", text, labels, registry=self.registry)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One answer."""
        known = method if method in ("GET", "POST", "PATCH", "DELETE", "PUT") else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(known, route).observe(seconds)

    def text(self, totals: Totals) -> bytes:
        """All of it as Prometheus reads it."""
        for gauge, values in ((self._nodes, totals.nodes), (self._vgpus, totals.vgpus)):
            gauge.clear()
            for state, count in values.items():
                gauge.labels(state).set(count)
        self._gpus.labels("true").set(totals.gpus_usable)
        self._gpus.labels("false").set(totals.gpus - totals.gpus_usable)
        self._compute.set(totals.compute_held_percent)
        self._memory.set(totals.memory_held_mib)
        self._sessions.set(totals.sessions)
        return generate_latest(self.registry)
