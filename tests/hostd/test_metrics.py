"""The Prometheus endpoint: what it tells, and how it treats those who ask badly."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gpupool.hostd.api import metrics
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.ports import Counters, DeviceUsage
from tests.hostd.test_host import Machine, opened

COUNTERS = Counters(100, 10, 60, 4096, 512, 2_500_000_000)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def read(host: Host) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Name and labels of every sample, as Prometheus's own parser sees the text."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics.HostCollector(host, "1.2.3"))
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_a_session(machine: Machine) -> None:
    host = machine.host()
    session = opened(host)
    machine.store.counted[session.id] = COUNTERS
    machine.store.usages[session.id] = (DeviceUsage(1 << 30, 25),)
    found = read(host)
    labels = (("session", str(session.id)), ("tenant", str(session.tenant_number)))
    assert found["gpupool_session_messages_total"] == {labels: 100}
    assert found["gpupool_session_answers_total"] == {labels: 10}
    assert found["gpupool_session_launches_total"] == {labels: 60}
    assert found["gpupool_session_busy_seconds_total"] == {labels: 2.5}
    assert found["gpupool_session_copied_bytes_total"] == {
        (("direction", "to_device"), *labels): 4096,
        (("direction", "from_device"), *labels): 512,
    }
    on_gpu = (("gpu", session.devices[0]), *labels)
    assert found["gpupool_session_memory_bytes"] == {on_gpu: 1 << 30}
    assert found["gpupool_session_utilization_ratio"] == {on_gpu: 0.25}
    assert found["gpupool_sessions"] == {(): 1}
    assert found["gpupool_gpus"] == {(): 8}
    assert found["gpupool_info"] == {(("version", "1.2.3"),): 1}


def test_what_ended_sessions_did_stays_in_the_sums(machine: Machine) -> None:
    host = machine.host()
    for exit_code in (0, -11):
        session = opened(host)
        machine.store.counted[session.id] = COUNTERS
        machine.workers.end(session.id, exit_code)
    session = opened(host)
    machine.store.counted[session.id] = COUNTERS
    found = read(host)
    assert found["gpupool_sessions_started_total"] == {(): 3}
    assert found["gpupool_sessions_ended_total"] == {(): 2}
    assert found["gpupool_sessions_failed_total"] == {(): 1}
    assert found["gpupool_messages_total"] == {(): 300}
    assert found["gpupool_busy_seconds_total"] == {(): 7.5}
    assert len(found["gpupool_session_messages_total"]) == 1


def test_nothing_names_a_client(machine: Machine) -> None:
    """Guests on the host's network may be able to ask."""
    host = machine.host()
    session = opened(host)
    machine.store.counted[session.id] = COUNTERS
    machine.store.usages[session.id] = (DeviceUsage(1, 1),)
    told = {
        value
        for samples in read(host).values()
        for labels in samples
        for name, value in labels
        if name not in ("gpu", "version", "direction")
    }
    assert told == {str(session.id), str(session.tenant_number)}


def served(host: Host, ask: Callable[[int], Any]) -> Any:
    """What `ask` returns of a port at which the metrics of `host` are."""

    async def serve() -> Any:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            door = metrics.MetricsDoor(host, "1", listener)
            task = asyncio.get_running_loop().create_task(door.serve())
            try:
                return await asyncio.to_thread(ask, listener.getsockname()[1])
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await door.finish()

    return asyncio.run(serve())


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


def test_over_http(machine: Machine) -> None:
    def ask(port: int) -> tuple[int, str, str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()

    status, kind, text = served(machine.host(), ask)
    assert (status, kind.split(";")[0]) == (200, "text/plain")
    assert "gpupool_sessions 0.0" in text


@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 "),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 "),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n"),
        (b"GET /metrics?x=1 HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n"),
        (b"\r\n\r\n", b"HTTP/1.1 405 "),
        (b"x" * 9000, b""),
    ],
)
def test_requests(machine: Machine, request_bytes: bytes, answer: bytes) -> None:
    try:
        told = served(machine.host(), lambda port: raw(port, request_bytes))
    except ConnectionResetError:  # closed with bytes of ours unread
        told = b""
    assert told.startswith(answer)
    assert bool(told) == bool(answer)


def test_those_who_say_nothing_keep_nobody_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_TIMEOUT_S", 0.5)

    def ask(port: int) -> float:
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        begun = time.monotonic()
        try:
            while time.monotonic() - begun < 10:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).close()
                except (urllib.error.URLError, ConnectionError):
                    continue
                return time.monotonic() - begun
            return 10
        finally:
            for one in silent:
                one.close()

    assert served(machine.host(), ask) < 5
