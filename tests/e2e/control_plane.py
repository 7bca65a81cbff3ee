"""A control plane of real parts: controllers as processes on one database, a hostd with the
software GPU that they lead, and what a user of them asks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from gpupool.controller.store.sql import Settings, SqlStore
from tests.conftest import ROOT, Host, free_port, make_host
from tests.controller.pool import Pool


@dataclass
class Replica:
    """One controller."""

    folder: Path
    database: str
    number: int = 0
    port: int = field(default_factory=free_port)
    nodes_port: int = field(default_factory=free_port)
    lease_s: int = 5
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it has logged."""
        path = self.folder / f"controller{self.number}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, wait: bool = True) -> None:
        """Starts it, and waits until it answers."""
        config = self.folder / f"controller{self.number}.toml"
        config.write_text(
            f'listen = "127.0.0.1:{self.port}"\n'
            f'nodes.listen = "127.0.0.1:{self.nodes_port}"\n'
            f"lease.node_s = {self.lease_s}\n"
            f'[database]\nurl = "{self.database}"\ntimeout_s = 2\n'
            f'[bootstrap]\ntoken_file = "{self.folder}/admin-token"\n'
            "[limits]\nrequests_per_s = 10000\nburst = 10000\n"
        )
        with (self.folder / f"controller{self.number}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpupool.controller", "--config", str(config)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=log,
            )
        if wait:
            eventually(self.answers, "the controller to answer", 60)

    def answers(self) -> bool:
        """Whether it serves."""
        assert self.process is not None
        assert self.process.poll() is None, self.log
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=2).is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=20)

    def freeze(self, frozen: bool) -> None:
        """As a machine that hangs, and goes on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)


@dataclass
class Plane:
    """Controllers, and what an administrator asks them."""

    folder: Path
    database: str
    replicas: list[Replica] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)

    def replica(self, start: bool = True) -> Replica:
        """One more."""
        one = Replica(self.folder, self.database, len(self.replicas))
        self.replicas.append(one)
        if start:
            one.start()
        return one

    def ask(self, method: str, path: str, body: Any = None, at: int = 0) -> httpx.Response:
        """One request as administrator."""
        secret = (self.folder / "admin-token").read_text().strip()
        return httpx.request(
            method,
            f"http://127.0.0.1:{self.replicas[at].port}/api/v1{path}",
            json=body,
            headers={"Authorization": f"Bearer {secret}"},
            timeout=20,
        )

    def must(self, method: str, path: str, body: Any = None, at: int = 0) -> Any:
        """The same; anything but success fails the test."""
        answer = self.ask(method, path, body, at)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def token(self, node: str) -> Path:
        """A file with a token for that node."""
        made = self.must("POST", "/tokens", {"name": node, "role": "node", "node": node})
        path = self.folder / f"{node}.token"
        path.write_text(made["secret"] if "secret" in made else made["token"])
        path.chmod(0o600)
        return path

    def tenant(self, name: str = "acme") -> None:
        """A tenant."""
        self.must("POST", "/tenants", {"name": name})

    def vgpu(self, name: str, percent: int = 25, mib: int = 64, **more: Any) -> dict[str, Any]:
        """A new vGPU of the tenant acme."""
        body = {"tenant": "acme", "name": name, "compute_percent": percent, "memory_mib": mib}
        made: dict[str, Any] = self.must("POST", "/vgpus", {**body, **more})
        return made

    def look(self, vgpu: dict[str, Any], at: int = 0) -> dict[str, Any]:
        """As it is now."""
        found: dict[str, Any] = self.must("GET", f"/vgpus/{vgpu['id']}", at=at)
        return found

    def state(self, vgpu: dict[str, Any], at: int = 0) -> str:
        """idle, placed, ready, lost or deleting; gone."""
        answer = self.ask("GET", f"/vgpus/{vgpu['id']}", at=at)
        return "gone" if answer.status_code == 404 else str(answer.json().get("state", "?"))

    def node_state(self, name: str) -> str:
        """ready or lost; empty: not known."""
        found = [one for one in self.must("GET", "/nodes")["items"] if one["name"] == name]
        return str(found[0]["state"]) if found else ""

    def host(self, folder: Path, node: str = "n1", **softgpu: int) -> Host:
        """A hostd that these controllers lead."""
        folder.mkdir(mode=0o755, exist_ok=True)
        urls = ",".join(f"tcp://127.0.0.1:{one.nodes_port}" for one in self.replicas)
        token = self.folder / f"{node}.token"
        section = (
            f'[controller]\nurl = "{urls}"\ntoken_file = "{token}"\nnode_name = "{node}"\n'
            'labels = ["zone=a"]\n'
        )
        one = make_host(folder, gpu="software", more=section, **softgpu)
        self.hosts.append(one)
        return one

    def check(self) -> None:
        """Nothing is given out twice, and every sum is that of its parts."""
        store = SqlStore(Settings(self.database))
        try:
            Pool(store).check()
        finally:
            store.close()

    def end(self) -> None:
        """Nothing of it goes on."""
        for one in self.replicas:
            if one.process is not None and one.process.poll() is None:
                one.process.kill()
                one.process.wait(timeout=20)


def admin(host: Host, method: str) -> Any:
    """One request at a hostd's admin socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(host.folder / "admin.sock"))
        connection.sendall(json.dumps({"method": method}).encode() + b"\n")
        with connection.makefile("rb") as lines:
            answer = json.loads(lines.readline())
    assert answer["ok"], answer
    return answer["result"]


def linked(host: Host) -> Any:
    """What hostd says of its controller."""
    return admin(host, "status")["controller"]


def named(host: Host) -> list[Any]:
    """The vGPUs with a name that a hostd has."""
    return [one for one in admin(host, "vgpu_list")["vgpus"] if one["name"]]


def eventually(condition: Callable[[], object], what: str, timeout_s: float = 30) -> float:
    """Waits for it; how long that took."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < timeout_s, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)
    return time.monotonic() - began_s
