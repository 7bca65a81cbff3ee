"""A real hostd in its own process, with fake native files, and a client that speaks its first
message.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpupool.cli import admin
from gpupool.wire.hello import WELCOME_BYTES, Hello, TransportKind, Welcome

ROOT = Path(__file__).parents[2]
HELLO = Hello(window_base=0x2000_0000_0000, program="fake", client_version="0.1.0")
TCP_HELLO = Hello(window_base=0x2000_0000_0000, transport=TransportKind.TCP, program="fake")


def eventually(condition: Callable[[], Any], what: str, timeout_s: float = 15.0) -> Any:
    """Waits until the condition holds, and returns what it returned; fails the test when it never
    does.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline_s, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.02)


def environment(native: Path, folder: Path, **more: str) -> dict[str, str]:
    """The variables of a process that must find the fake files and nothing of this machine's own
    hostd.
    """
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "GPUPOOL_NATIVE_DIR": str(native),
        "GPUPOOL_RUNTIME_DIR": str(folder),
        "GPUPOOL_GPU": "software",
        **more,
    }


def gpupool(*words: str) -> list[str]:
    """The command line of `gpupool WORDS`."""
    return [sys.executable, "-m", "gpupool.cli", *words]


@dataclass
class Answer:
    """A Welcome and what came with it."""

    connection: socket.socket
    welcome: Welcome
    fds: list[int]

    def close(self) -> None:
        """The client goes."""
        self.connection.close()
        for fd in self.fds:
            os.close(fd)


def connect(address: str) -> socket.socket:
    """Dials an endpoint as `gpupool status` names it."""
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(30)
        connection.connect(address.removeprefix("unix:"))
        return connection
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def receive(connection: socket.socket) -> Answer:
    """Reads a Welcome."""
    received, fds = b"", []
    while len(received) < WELCOME_BYTES:
        piece, more, _, _ = socket.recv_fds(connection, WELCOME_BYTES - len(received), 4)
        assert piece, f"the connection ended after {len(received)} bytes"
        received += piece
        fds += more
    return Answer(connection, Welcome.decode(received), fds)


def say(address: str, raw: bytes) -> Answer:
    """Sends these bytes and reads a Welcome."""
    connection = connect(address)
    connection.sendall(raw)
    return receive(connection)


@dataclass
class Daemon:
    """One configuration folder and the hostd that runs on it."""

    native: Path
    folder: Path
    more: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self, config: str = "") -> None:
        """Starts it and waits until it serves."""
        (self.folder / "hostd.toml").write_text(
            f'gpu = "software"\nstate_dir = "{self.folder}/state"\n'
            f'vgpu_dir = "{self.folder}/kept"\n'
            f'admin_socket = "{self.admin_socket}"\n{config}\n'
            f'[sandbox]\ncache_dir = "{self.folder}/cache"\n'
            f'[[endpoint]]\nlisten = "{self.unix}"\n'
            '[[endpoint]]\nlisten = "tcp://127.0.0.1:0"\ninsecure = true\ntoken_file = '
            f'"{self.token_file}"\n',
            encoding="utf-8",
        )
        readable, writable = os.pipe()
        command = gpupool(
            "hostd", "--config", str(self.folder / "hostd.toml"), "--ready-fd", str(writable)
        )
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=environment(self.native, self.folder, **self.more),
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=(writable,),
            )
        os.close(writable)
        try:
            assert select.select([readable], [], [], 30)[0], "hostd gave no sign of life"
            word = os.read(readable, 4096).decode()
            assert word == "ready\n", word
        finally:
            os.close(readable)

    def stop(self, *, kill: bool = False) -> int:
        """Ends it; its exit code."""
        assert self.process is not None
        if kill:
            self.process.kill()
        else:
            self.process.terminate()
        return self.process.wait(timeout=20)

    def clean_up(self) -> None:
        """Ends hostd and every worker it knows."""
        with contextlib.suppress(admin.AdminError):
            for session in self.status()["sessions"]:
                admin.call(self.admin_socket, "end", session=session["id"], kill=True)
        if self.process is not None and self.process.poll() is None:
            self.stop(kill=True)

    @property
    def unix(self) -> str:
        """Its unix endpoint."""
        return f"unix:{self.folder}/hostd.sock"

    @property
    def tcp(self) -> str:
        """Its TCP endpoint, with the port that the kernel chose."""
        return str(self.status()["endpoints"][1]["endpoint"])

    @property
    def token_file(self) -> Path:
        """Where its token is."""
        return self.folder / "token"

    @property
    def admin_socket(self) -> Path:
        """Where to ask it."""
        return self.folder / "admin.sock"

    @property
    def log_path(self) -> Path:
        """Where it logs."""
        return self.folder / "hostd.log"

    @property
    def log(self) -> str:
        """What it logged."""
        return self.log_path.read_text(encoding="utf-8")

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        return admin.call(self.admin_socket, "status")

    def sessions(self) -> list[dict[str, Any]]:
        """The sessions it has."""
        sessions: list[dict[str, Any]] = self.status()["sessions"]
        return sessions
