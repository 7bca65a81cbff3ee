"""gpupool-vsock as a process, with the unix sockets of a VM's folder."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpupool.hostd.adapters import native_files
from tests.hostd.vsock_guest import TIMEOUT_S, Guest

CID = 42


def program() -> Path:
    """gpupool-vsock of this build."""
    found = native_files.locate().root / "libexec" / "gpupool-vsock"
    if not found.exists():
        pytest.skip("gpupool-vsock is not built: run ./run build")
    return found


def until(condition: Callable[[], object], what: str) -> None:
    """Waits, with a bound."""
    end_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s, f"waited for {what}"
        time.sleep(0.005)


class Relay:
    """The folder of a VM, its relay, and what listens there."""

    def __init__(self, base: Path) -> None:
        self.folder = base / "vm"
        self.folder.mkdir()
        self.log_file = base / "log"
        self.log_file.touch()
        self.guests: list[Guest] = []
        self.services: list[socket.socket] = []
        self.start()

    def start(self) -> None:
        """Starts it and waits until it serves."""
        self.process = self.run()
        pid = f"{self.process.pid}\n"
        until(lambda: self._serves(pid), "the relay's sockets")

    def _serves(self, pid: str) -> bool:
        assert self.process.poll() is None, self.log
        file = self.folder / "relay.pid"
        if not file.exists() or file.read_text() != pid:
            return False
        probe = socket.socket(socket.AF_UNIX)
        with probe, contextlib.suppress(OSError):
            probe.connect(str(self.folder / "vhost"))
            return True
        return False

    def run(self, *words: str) -> subprocess.Popen[bytes]:
        """Another process of the same words."""
        with self.log_file.open("ab") as log:
            command = [str(program()), "--folder", str(self.folder), "--cid", str(CID)]
            command += ["--sandbox-calls", "yes", "--log-json", "no", "--log-priorities", "no"]
            return subprocess.Popen([*command, *words], stdin=subprocess.DEVNULL, stderr=log)

    @property
    def log(self) -> str:
        """What it has logged."""
        return self.log_file.read_text()

    def guest(self, *, event_index: bool = True) -> Guest:
        """A guest that has booted."""
        guest = Guest(self.folder, CID, event_index=event_index)
        self.guests.append(guest)
        guest.connect()
        return guest

    def service(self, port: int) -> socket.socket:
        """Listens where the guest's connections to that port arrive."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.folder / f"vsock_{port}"))
        listener.listen(128)
        listener.settimeout(TIMEOUT_S)
        self.services.append(listener)
        return listener

    def accept(self, listener: socket.socket) -> socket.socket:
        """The next connection there."""
        taken, _ = listener.accept()
        taken.settimeout(TIMEOUT_S)
        self.services.append(taken)
        return taken

    def echo(self, port: int) -> None:
        """A service that sends back what it gets, and ends when its client does."""
        listener = self.service(port)

        def serve(taken: socket.socket) -> None:
            with taken, contextlib.suppress(OSError):
                while data := taken.recv(1 << 16):
                    taken.sendall(data)

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken, _ = listener.accept()
                    threading.Thread(target=serve, args=(taken,), daemon=True).start()

        threading.Thread(target=take, daemon=True).start()

    def call(self, line: bytes) -> socket.socket:
        """A connection from the host, which has said that line."""
        caller = socket.socket(socket.AF_UNIX)
        caller.settimeout(TIMEOUT_S)
        caller.connect(str(self.folder / "vsock"))
        caller.sendall(line)
        self.services.append(caller)
        return caller

    def open_files(self) -> int:
        """Descriptors that it has."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def close(self) -> None:
        """Ends everything."""
        for guest in self.guests:
            guest.close()
        for service in self.services:
            with contextlib.suppress(OSError):
                service.shutdown(socket.SHUT_RDWR)
            service.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=TIMEOUT_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
