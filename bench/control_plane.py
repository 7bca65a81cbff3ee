"""Times the controller: `python -m bench.control_plane --database postgresql`.

Fills a database with nodes and vGPUs, starts a real controller on it and asks over HTTP, as a
client does: at a fixed rate (an answer's time counts from when its request was due, so that a
stall shows in all that wait), then from many requesters at once. Then it kills the controller,
starts it again and looks whether everything adds up. Prints Markdown. "CPU ms" is the
controller's own processor time for an answer: what a machine could do that has nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import insert, text, update

from gpupool.bench import postgres
from gpupool.bench.live_nodes import LiveNodes
from gpupool.controller.core import consistency
from gpupool.controller.core.identity import new_id
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.tenant import Tenant
from gpupool.controller.store import migrate
from gpupool.controller.store.models import (
    BeatRow,
    GpuRow,
    LabelRow,
    NodeRow,
    TenantRow,
    UseRow,
    VgpuRow,
)
from gpupool.controller.store.sql import Settings, SqlStore

_START_S = 60.0
_SETTLE_S = 300.0
_SHARES = (5, 10, 15, 20, 25, 30)
_GPU_MIB = 80_000


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    nodes: int
    gpus: int
    vgpus: int
    rate: float
    seconds: float
    requesters: int
    nice: int = 0  # of what is measured, on a machine that has other things to do
    live: bool = False  # nodes that are there, by gRPC, and do what they are told


def fill(store: SqlStore, plan: Plan) -> None:
    """Nodes, GPUs and vGPUs, as if all had come by the usual way, which would take minutes."""

    def tenant(tables: Tables) -> str:
        one = Tenant(new_id("tenant", tables.now_ms), "bench")
        tables.tenants.add(one)
        return one.id

    owner = store.change(tenant)
    nodes = [f"node-{number:05d}" for number in range(plan.nodes)]
    gpus = [_gpu(node, index) for node in nodes for index in range(plan.gpus)]
    vgpus = [_vgpu(owner, number, gpus[number % len(gpus)]) for number in range(plan.vgpus)]
    chosen = TenantRow.__table__.c.name == "bench"
    used = {
        "used_vgpus": len(vgpus),
        "used_compute_percent": sum(one["compute_percent"] for one in vgpus),
        "used_memory_mib": sum(one["memory_mib"] for one in vgpus),
    }
    with store.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        connection.execute(insert(NodeRow), [_node(name) for name in nodes])
        labels = [
            {"node_id": name, "key": "zone", "value": f"z{number % 8}"}
            for number, name in enumerate(nodes)
        ]
        connection.execute(insert(LabelRow), labels)
        beat = {"incarnation": 1, "sequence": 0, "beat": 1, "heard_ms": 1}
        connection.execute(insert(BeatRow), [{"node_id": name, **beat} for name in nodes])
        connection.execute(insert(GpuRow), gpus)
        use = {"load_percent": 0, "memory_used_mib": 0}
        connection.execute(insert(UseRow), [{"gpu_id": gpu["id"], **use} for gpu in gpus])
        connection.execute(insert(VgpuRow), vgpus)
        connection.execute(update(TenantRow).where(chosen).values(used))
        connection.commit()
        if connection.dialect.name == "postgresql":
            connection.execute(text("ANALYZE"))  # as autovacuum does, some minutes later
            connection.commit()


def _node(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "name": name,
        "state": "ready",
        "cordoned": False,
        "labels": {},
        "endpoint": f"tls://{name}:9179",
        "agent_version": "bench",
        "incarnation": 1,
        "generation": 1,
        "applied_generation": 0,
        "version": 1,
        "created_ms": 1,
    }


def _gpu(node: str, index: int) -> dict[str, Any]:
    return {
        "id": f"gpu-{node}-{index}",
        "node_id": node,
        "uuid": f"GPU-{node}-{index}",
        "position": index,
        "model": "H100" if index % 2 else "A100",
        "memory_mib": _GPU_MIB,
        "overhead_mib": 0,
        "compute_held_percent": 0,
        "memory_held_mib": 0,
        "local_compute_percent": 0,
        "local_memory_mib": 0,
        "compute_free_percent": 100,
        "memory_free_mib": _GPU_MIB,
        "pool": "pooled",
        "pool_wanted": "pooled",
        "pool_deadline_s": None,
        "healthy": True,
        "present": True,
        "licensed": True,
        "usable": True,
        "version": 1,
    }


def _vgpu(owner: str, number: int, gpu: dict[str, Any]) -> dict[str, Any]:
    """One on a GPU, whose room it takes."""
    compute, memory = _SHARES[number % len(_SHARES)], 1000 + number % 7 * 500
    gpu["compute_held_percent"] += compute
    gpu["compute_free_percent"] -= compute
    gpu["memory_held_mib"] += memory
    gpu["memory_free_mib"] -= memory
    return {
        "id": f"vgpu-{number:08d}",
        "tenant_id": owner,
        "name": f"filled-{number}",
        "mode": "reserved",
        "policy": "elastic",
        "priority": 0,
        "compute_percent": compute,
        "memory_mib": memory,
        "compute_held_percent": compute,
        "memory_held_mib": memory,
        "state": "placed",
        "selector": {"models": [], "gpu_memory_mib": 0, "node": "", "labels": {}},
        "strategy": "binpack",
        "gpu_id": gpu["id"],
        "gpu_uuid": gpu["uuid"],
        "node_id": gpu["node_id"],
        "node_name": gpu["node_id"],
        "group_id": None,
        "memory_used_mib": 0,
        "generation": 1,
        "version": 1,
        "created_ms": 1,
    }


class Controller:
    """A controller of the bench's own."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self.port = _free_port()
        self.nodes_port = _free_port()
        (folder / "controller.toml").write_text(
            f'listen = "127.0.0.1:{self.port}"\n'
            f'nodes.listen = "127.0.0.1:{self.nodes_port}"\n'
            f'[database]\nurl = "{url}"\n'
            f'[bootstrap]\ntoken_file = "{folder}/token"\n'
            "[limits]\nrequests_per_s = 100000\nburst = 100000\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Starts it; seconds until it is ready."""
        begin_s = time.perf_counter()
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(  # noqa: S603  our own module
                [
                    *(sys.executable, "-m", "gpupool.controller"),
                    *("--config", str(self._folder / "controller.toml")),
                ],
                stderr=log,
            )
        while not asyncio.run(self._ready()):
            if time.perf_counter() - begin_s > _START_S or self._process.poll() is not None:
                raise RuntimeError((self._folder / "log").read_text()[-2000:])
            time.sleep(0.05)
        return time.perf_counter() - begin_s

    def end(self, number: int) -> None:
        """Sends a signal and waits."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=30)

    def cpu_s(self) -> float:
        """Processor time that it has taken (proc(5), stat: fields 14 and 15)."""
        if self._process is None:
            return 0.0
        text = Path(f"/proc/{self._process.pid}/stat").read_text()
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @property
    def token(self) -> str:
        """The first admin token."""
        return (self._folder / "token").read_text().strip()

    async def _ready(self) -> bool:
        try:
            status, _ = await Connection(self.port, "").ask("GET", "/readyz")
        except OSError:
            return False
        return status == 200


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Connection:
    """HTTP/1.1 with as little of our own time in it as possible: it shares the machine."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Status and body."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        content = b"" if body is None else json.dumps(body).encode()
        writer.write(
            f"{method} {path} HTTP/1.1\r\n{self._head}Content-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        length = next(
            int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length")
        )
        return int(lines[0].split()[1]), await reader.readexactly(length)

    def close(self) -> None:
        """Hangs up."""
        if self._streams is not None:
            self._streams[1].close()


@dataclass(slots=True)
class Taken:
    """What was measured."""

    name: str
    seconds: float
    times_ms: list[float]
    refused: int
    cpu_s: float = 0.0

    def row(self) -> str:
        """A row of the table."""
        ordered = sorted(self.times_ms)

        def at(share: float) -> str:
            return f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.1f}"

        rate = len(ordered) / self.seconds
        return (
            f"| {self.name} | {len(ordered)} | {rate:.0f} | {at(0.5)} | {at(0.95)} | {at(0.99)} | "
            f"{ordered[-1]:.1f} | {self.cpu_s / len(ordered) * 1000:.1f} | {self.refused} |"
        )


async def at_rate(port: int, token: str, plan: Plan) -> Taken:
    """Allocations at a fixed rate; each on a free connection."""
    free: asyncio.Queue[Connection] = asyncio.Queue()
    connections = [Connection(port, token) for _ in range(64)]
    for connection in connections:
        free.put_nowait(connection)
    taken = Taken(f"{plan.rate:.0f} a second", plan.seconds, [], 0)
    count = int(plan.rate * plan.seconds)
    begin_s = time.perf_counter()

    async def one(number: int) -> None:
        due_s = begin_s + number / plan.rate
        connection = await free.get()
        await allocate(connection, f"rate-{number}", number, taken, due_s)
        free.put_nowait(connection)

    waiting = []
    for number in range(count):
        wait_s = begin_s + number / plan.rate - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        waiting.append(asyncio.ensure_future(one(number)))
    await asyncio.gather(*waiting)
    taken.seconds = time.perf_counter() - begin_s
    for connection in connections:
        connection.close()
    return taken


async def at_once(port: int, token: str, plan: Plan) -> Taken:
    """Requesters that ask again as soon as they are answered."""
    taken = Taken(f"{plan.requesters} requesters at once", plan.seconds, [], 0)
    begin_s = time.perf_counter()

    async def one(requester: int) -> None:
        connection = Connection(port, token)
        number = 0
        while time.perf_counter() - begin_s < plan.seconds:
            name = f"once-{requester}-{number}"
            await allocate(connection, name, number + requester, taken, time.perf_counter())
            number += 1
        connection.close()

    await asyncio.gather(*(one(requester) for requester in range(plan.requesters)))
    taken.seconds = time.perf_counter() - begin_s
    return taken


async def allocate(
    connection: Connection, name: str, number: int, taken: Taken, due_s: float
) -> None:
    """One vGPU."""
    body = {
        "name": name,
        "tenant": "bench",
        "compute_percent": _SHARES[number % len(_SHARES)],
        "memory_mib": 1000,
    }
    status, answer = await connection.ask("POST", "/api/v1/vgpus", body)
    taken.times_ms.append((time.perf_counter() - due_s) * 1000)
    if status == 409:
        taken.refused += 1
    elif status != 201:
        raise RuntimeError(f"status {status}: {answer[:500]!r}")


@contextmanager
def database(kind: str, folder: Path) -> Iterator[tuple[str, int | None]]:
    """The URL of an empty one, which waits for the disk as in earnest, and its server's pid."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/controller.db", None
        return
    with postgres.cluster(durable=True) as cluster:
        yield cluster.create("bench"), cluster.pid


@contextmanager
def hurried(server_pid: int | None, nice: int) -> Iterator[None]:
    """For this process and what it starts, and PostgreSQL's connections that are still to come."""
    for pid in (0, server_pid):
        if nice and pid is not None:
            os.setpriority(os.PRIO_PROCESS, pid, nice)
    yield
    if nice:
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def measure(kind: str, plan: Plan) -> list[str]:
    """Everything on one kind of database; lines of Markdown."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpupool-cp-")))
        url, server_pid = stack.enter_context(database(kind, folder))
        store = SqlStore(Settings(url))
        stack.callback(store.close)
        migrate.upgrade(store.engine)
        begin_s = time.perf_counter()
        fill(store, plan)
        filled_s = time.perf_counter() - begin_s
        controller = Controller(folder, url)
        stack.enter_context(hurried(server_pid, plan.nice))
        first_s = controller.start()
        live: LiveNodes | None = None
        told = []
        if plan.live:
            live = LiveNodes(store, folder, controller.nodes_port, plan.nodes, plan.gpus)
            stack.callback(live.end)
            took_s = live.until_consistent(_SETTLE_S)
            told.append(f"All nodes came at once: all vGPUs confirmed after {took_s:.1f} s.")
        try:
            rows = []
            for work in (at_rate, at_once):
                before_s = controller.cpu_s()
                taken = asyncio.run(work(controller.port, controller.token, plan))
                taken.cpu_s = controller.cpu_s() - before_s
                rows.append(taken.row())
        finally:
            controller.end(signal.SIGKILL)
        if live is not None:
            # Nodes still have reports to make of the last allocations; that is part of it.
            time.sleep(1)
        killed_s = time.time()
        again_s = controller.start()
        if live is not None:
            consistent_s = again_s + live.until_consistent(_SETTLE_S, since=killed_s)
            told.append(
                f"After kill -9, {consistent_s:.1f} s until the controller served, every node had "
                "its stream again and every vGPU was confirmed."
            )
        controller.end(signal.SIGTERM)
        wrong = store.read(consistency.faults)
    if wrong:
        raise RuntimeError("does not add up: " + "; ".join(wrong[:5]))
    return [
        f"### {kind}",
        f"{plan.nodes} nodes, {plan.nodes * plan.gpus} GPUs, {plan.vgpus} vGPUs; filled in "
        f"{filled_s:.0f} s; started in {first_s:.1f} s, after kill -9 in {again_s:.1f} s; "
        "everything adds up afterwards",
        "",
        "| allocations | answers | a second | p50 ms | p95 ms | p99 ms | max ms | CPU ms "
        "| refused |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        *told,
        "",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured; 1 something failed or does not add up."""
    parser = argparse.ArgumentParser(prog="python -m bench.control_plane", description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--gpus", type=int, default=8, help="of each node")
    parser.add_argument("--vgpus", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=200, help="allocations a second")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--requesters", type=int, default=64)
    parser.add_argument("--nice", type=int, default=0, help="of the measured part")
    parser.add_argument(
        "--live", action="store_true", help="with simulated nodes that are connected by gRPC"
    )
    asked = parser.parse_args(arguments)
    plan = Plan(
        asked.nodes,
        asked.gpus,
        asked.vgpus,
        asked.rate,
        asked.seconds,
        asked.requesters,
        asked.nice,
        asked.live,
    )
    kinds = ("sqlite", "postgresql") if asked.database == "both" else (asked.database,)
    load = os.getloadavg()[0]
    print(
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, {platform.machine()}, {os.cpu_count()} "
        f"processors (load {load:.1f} before, nice {plan.nice}), Linux {platform.release()}\n",
        flush=True,
    )
    for kind in kinds:
        try:
            print("\n".join(measure(kind, plan)), flush=True)
        except RuntimeError as error:
            print(f"{kind}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
