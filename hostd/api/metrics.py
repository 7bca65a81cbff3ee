"""The door for Prometheus: GET /metrics over plain HTTP, where `metrics.listen` says.

Whoever can connect may read, so what is told names no program, user or address of anybody: sessions
and tenants are the numbers of `gpupool status --json`. No client of a vGPU is ever pointed here.
Every connection has a deadline and answers one request; their number is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from gpupool.hostd.api.conversations import Conversations
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.ports import Counters, DeviceUsage
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.vm import VmState
from gpupool.hostd.core.vms import Vms

_REQUEST_BYTES = 8192
_TIMEOUT_S = 5.0
_MAX_CONNECTIONS = 16

# Name without its prefix, help, field of Counters, divisor, value of the label `direction`.
_COUNTED = (
    ("messages", "Messages that workers executed.", "messages", 1, ""),
    ("answers", "Of the messages, those whose answer the client waited for.", "answers", 1, ""),
    ("launches", "Kernel launches; not those within graphs.", "launches", 1, ""),
    (
        "copied_bytes",
        "Bytes of copies between host memory and GPUs.",
        "to_device_bytes",
        1,
        "to_device",
    ),
    ("copied_bytes", "", "from_device_bytes", 1, "from_device"),
    (
        "zero_copy_bytes",
        "Bytes sent to clients by reference (MSG_ZEROCOPY).",
        "zero_copy_bytes",
        1,
        "",
    ),
    (
        "zero_copy_refused",
        "Sends that were copies because the kernel had no room.",
        "zero_copy_refused",
        1,
        "",
    ),
    ("busy_seconds", "Time in which workers were executing messages.", "busy_ns", 10**9, ""),
)
_SESSION = ("session", "tenant")


class HostCollector(Collector):
    """What Host knows, as metrics. Reads when asked and keeps nothing."""

    def __init__(self, host: Host, version: str, vms: Vms | None = None) -> None:
        self._host = host
        self._version = version
        self._vms = vms

    def collect(self) -> Iterable[Metric]:
        """All families."""
        host = self._host
        active = [(session, *host.activity(session.id)) for session in host.sessions]
        every = sum((counters for _, counters, _ in active), host.past.counters)
        yield InfoMetricFamily("gpupool", "This hostd.", {"version": self._version})
        yield GaugeMetricFamily("gpupool_gpus", "GPUs to give out.", len(host.inventory.gpus))
        yield GaugeMetricFamily("gpupool_sessions", "Sessions now.", len(active))
        drawing = sum(session.kind == "opengl" for session, _, _ in active)
        yield GaugeMetricFamily("gpupool_opengl_sessions", "Of these, those of OpenGL.", drawing)
        yield GaugeMetricFamily(
            "gpupool_workers_waiting", "Workers started ahead of need.", host.workers_waiting
        )
        if self._vms is not None:
            yield from _machines(self._vms)
        yield CounterMetricFamily(
            "gpupool_sessions_started", "Since this hostd began.", host.started
        )
        yield CounterMetricFamily(
            "gpupool_sessions_ended", "Since this hostd began.", host.past.sessions
        )
        yield CounterMetricFamily(
            "gpupool_sessions_failed",
            "Of those that ended: the worker crashed, or the client broke the protocol.",
            host.past.failed,
        )
        yield from _families("gpupool", " All sessions since this hostd began.", (), [((), every)])
        labelled = [(_labels(session), counters) for session, counters, _ in active]
        yield from _families("gpupool_session", " Sessions that there are.", _SESSION, labelled)
        yield from _usage([(session, usage) for session, _, usage in active])


def _machines(vms: Vms) -> Iterable[Metric]:
    """How many there are; nothing that names one."""
    every = vms.all()
    states = GaugeMetricFamily(
        "gpupool_vms", "Virtual machines that are prepared or run.", labels=("state",)
    )
    for state in VmState:
        states.add_metric((state.value,), sum(one.vm.state is state for one in every))
    agents = GaugeMetricFamily(
        "gpupool_vm_agents", "What the agents in them last said.", labels=("health",)
    )
    for health in ("unknown", "ready", "failed"):
        agents.add_metric((health,), sum(one.health.state == health for one in every))
    return states, agents


def _labels(session: Session) -> tuple[str, ...]:
    return str(session.id), str(session.tenant_number)


def _families(
    prefix: str,
    whose: str,
    labels: tuple[str, ...],
    rows: Iterable[tuple[tuple[str, ...], Counters]],
) -> Iterable[Metric]:
    rows = list(rows)
    families: dict[str, CounterMetricFamily] = {}
    for name, text, field, divisor, direction in _COUNTED:
        names = (*labels, "direction") if direction else labels
        if name not in families:
            families[name] = CounterMetricFamily(f"{prefix}_{name}", text + whose, labels=names)
        for values, counters in rows:
            families[name].add_metric(
                (*values, direction) if direction else values, getattr(counters, field) / divisor
            )
    return families.values()


def _usage(rows: Iterable[tuple[Session, tuple[DeviceUsage, ...]]]) -> Iterable[Metric]:
    labels = (*_SESSION, "gpu")
    memory = GaugeMetricFamily(
        "gpupool_session_memory_bytes", "GPU memory that the session has.", labels=labels
    )
    load = GaugeMetricFamily(
        "gpupool_session_utilization_ratio",
        "Share of the past second in which the session had work on the GPU.",
        labels=labels,
    )
    for session, usage in rows:
        for uuid, one in zip(session.devices, usage, strict=False):
            memory.add_metric((*_labels(session), uuid), one.memory_bytes)
            load.add_metric((*_labels(session), uuid), one.utilization_percent / 100)
    return memory, load


class MetricsDoor:
    """Answers on one listening socket (borrowed)."""

    def __init__(
        self, host: Host, version: str, listener: socket.socket, vms: Vms | None = None
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(HostCollector(host, version, vms))
        self._listener = listener
        self._conversations = Conversations(_MAX_CONNECTIONS)

    async def serve(self) -> None:
        """Accepts until cancelled."""
        await self._conversations.accept(self._listener, "metrics", self._talk)

    async def finish(self) -> None:
        """Ends every conversation."""
        await self._conversations.finish()

    async def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, asyncio.TimeoutError):
            connection.setblocking(False)
            await asyncio.wait_for(self._conversation(connection), _TIMEOUT_S)

    async def _conversation(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        head = b""
        while b"\r\n\r\n" not in head:
            piece = await loop.sock_recv(connection, _REQUEST_BYTES)
            head += piece
            if not piece or len(head) > _REQUEST_BYTES:
                return
        await loop.sock_sendall(connection, self._answer(head.split(b"\r\n", 1)[0]))

    def _answer(self, line: bytes) -> bytes:
        method, _, rest = line.partition(b" ")
        target = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"GET only\n")
        if target != b"/metrics":
            return _response("404 Not Found", "text/plain", b"see /metrics\n")
        content = generate_latest(self._registry)
        return _response("200 OK", CONTENT_TYPE_LATEST, b"" if method == b"HEAD" else content)


def _response(status: str, kind: str, content: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + content
