"""A real controller: its start, its streams, TLS, signals, and what it leaves on disk."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpupool.controller.core.ports import Page
from gpupool.controller.store.sql import Settings, SqlStore
from tests.conftest import free_port
from tests.controller.pool import Pool

_START_S = 60
COMMAND = (sys.executable, "-m", "gpupool.controller", "--config")
_ALL = Page(10_000)


@dataclass
class Running:
    """A controller process."""

    folder: Path
    url: str
    port: int
    scheme: str = "http"
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it is ready."""
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [*COMMAND, str(self.folder / "controller.toml")],
                stderr=log,
                env=dict(os.environ),
            )
        deadline_s = time.monotonic() + _START_S
        while not self._ready():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline_s, self.log
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            return self.client().get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def client(self) -> httpx.Client:
        """As the first admin, where there is one."""
        path = self.folder / "admin-token"
        secret = path.read_text().strip() if path.exists() else ""
        verify: Any = True
        if self.scheme == "https":
            verify = ssl.create_default_context(cafile=str(self.folder / "cert.pem"))
        return httpx.Client(
            base_url=f"{self.scheme}://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {secret}"},
            timeout=20,
            verify=verify,
        )

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal; the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=30)

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "log").read_text()


def configure(folder: Path, url: str, more: str = "", listen: str = "127.0.0.1") -> Running:
    """Its configuration file."""
    port = free_port()
    (folder / "controller.toml").write_text(
        f'listen = "{listen}:{port}"\n'
        f'[database]\nurl = "{url}"\ntimeout_s = 2\n'
        f'[bootstrap]\ntoken_file = "{folder}/admin-token"\n[lease]\nnode_s = 5\n{more}'
    )
    return Running(folder, url, port)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """One on SQLite."""
    one = configure(tmp_path, f"sqlite:///{tmp_path}/controller.db")
    one.start()
    yield one
    if one.process is not None and one.process.poll() is None:
        one.end(signal.SIGKILL)


def test_the_first_token_is_for_its_owner_only(running: Running) -> None:
    path = running.folder / "admin-token"
    assert path.stat().st_mode & 0o777 == 0o600
    with running.client() as client:
        assert client.get("/api/v1/tokens").json()["items"][0]["role"] == "admin"
    secret = path.read_text().strip()
    assert running.end() == 0
    running.start()
    assert path.read_text().strip() == secret  # made once
    assert secret not in running.log
    command = Path(f"/proc/{running.process.pid if running.process else 0}/cmdline").read_bytes()
    assert secret.encode() not in command


def test_a_killed_controller_comes_back_with_everything(running: Running) -> None:
    pool = Pool(SqlStore(Settings(running.url)))
    tenant = pool.tenant()
    pool.node(gpus=2)
    stop = threading.Event()
    made: list[str] = []

    def ask() -> None:
        with running.client() as client:
            for number in range(10_000):
                if stop.is_set():
                    return
                body = {"name": f"v{number}", "tenant": "acme", "compute_percent": 1}
                try:
                    answer = client.post("/api/v1/vgpus", json=body)
                except httpx.TransportError:
                    return
                if answer.status_code == 201:
                    made.append(answer.json()["id"])

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(1.0)
    running.end(signal.SIGKILL)
    stop.set()
    asking.join(20)
    begin_s = time.monotonic()
    running.start()
    assert time.monotonic() - begin_s < _START_S
    found = pool.store.read(lambda tables: [one.id for one in tables.vgpus.page(_ALL, tenant)])
    assert set(made) <= set(found)  # what was answered is there
    pool.check()
    done = subprocess.run(
        [*COMMAND, str(running.folder / "controller.toml"), "--verify"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "everything adds up\n")
    pool.store.close()


def test_events_are_followed_and_resumed(running: Running) -> None:
    pool = Pool(SqlStore(Settings(running.url)))
    tenant = pool.tenant()
    pool.node()
    pool.create(tenant, "a", 1)

    def follow(last: str, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with (
            running.client() as client,
            client.stream(
                "GET", "/api/v1/events?follow=true", headers={"Last-Event-ID": last}
            ) as stream,
        ):
            assert stream.headers["content-type"].startswith("text/event-stream")
            for line in stream.iter_lines():
                if line.startswith("data: ") and line != "data: {}":
                    found.append(json.loads(line[6:]))
                if line == "event: reset":
                    found.append({"kind": "reset"})
                if len(found) == count:
                    break
        return found

    first = follow("0", 2)
    assert [one["kind"] for one in first] == ["node.registered", "vgpu.created"]
    later = threading.Timer(0.5, lambda: pool.create(tenant, "b", 1))
    later.start()
    new = follow(str(first[-1]["number"]), 1)
    later.join()
    assert [one["facts"]["name"] for one in new] == ["b"]
    assert follow("999999", 1) == [{"kind": "reset"}]
    begin_s = time.monotonic()
    with (
        running.client() as client,
        client.stream("GET", "/api/v1/events?follow=true") as stream,
    ):
        assert next(stream.iter_lines()).startswith("retry")
        assert running.end() == 0  # an open stream does not keep it
    assert time.monotonic() - begin_s < 15
    pool.store.close()


def test_a_silent_node_is_lost(running: Running) -> None:
    """With a lease of 5 s, by the sweeper of a real controller."""
    pool = Pool(SqlStore(Settings(running.url)))
    tenant, _ = pool.tenant(), pool.node()
    vgpu = pool.create(tenant, "a")
    deadline_s = time.monotonic() + 40
    while pool.vgpu(vgpu.id).state.value != "lost":
        assert time.monotonic() < deadline_s, running.log
        time.sleep(0.3)
    with running.client() as client:
        assert client.get("/api/v1/nodes").json()["items"][0]["state"] == "lost"
    pool.store.close()


def test_tls(tmp_path: Path) -> None:
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("there is no openssl command")
    tls = f'[tls]\ncertificate = "{tmp_path}/cert.pem"\nkey = "{tmp_path}/key.pem"\n'
    one = configure(tmp_path, f"sqlite:///{tmp_path}/controller.db", tls, "0.0.0.0")  # noqa: S104
    one.scheme = "https"
    one.start()
    try:
        with one.client() as client:
            assert client.get("/api/v1/version").status_code == 200
    finally:
        one.end()


def test_it_does_not_start_on_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "controller.toml"
    path.write_text('listen = "0.0.0.0:1"\n')
    done = subprocess.run(
        [*COMMAND, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "without TLS" in done.stderr
