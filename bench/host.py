"""A hostd of the bench's own, with an endpoint for every transport, and what clients need."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpupool.bench import vm
from gpupool.hostd.adapters import native_files, usage_page
from gpupool.hostd.adapters.certificate import fingerprint

_START_TIMEOUT_S = 60
_VSOCK_PORT = 9177
# Where hostd leaves by itself, should the bench be killed.
_IDLE_TIMEOUT_S = 120


class HostError(RuntimeError):
    """hostd did not start. The text says why."""


@dataclass(frozen=True)
class Served:
    """A client's session, and the worker that serves it."""

    session: int
    worker_pid: int


@dataclass(frozen=True)
class Host:
    """A running hostd."""

    folder: Path
    pid: int
    ports: dict[str, int]  # of tcp and tls

    def environment(self, transport: str, port: int = 0) -> dict[str, str]:
        """Variables under which a program uses that transport, perhaps at another port."""
        port = port or self.ports.get(transport, 0)
        endpoints = {
            "shm": f"unix:{self.folder}/hostd.sock",
            "vsock": f"vsock://2:{_VSOCK_PORT}",
            "window": f"vsock://2:{vm.PORT}",
            "tcp": f"tcp://127.0.0.1:{port}",
            "tls": f"tls://127.0.0.1:{port}",
        }
        variables = {
            "GPUPOOL_ENDPOINT": endpoints[transport],
            "GPUPOOL_TRANSPORT": transport,
            "LD_LIBRARY_PATH": library_path(guest_folder()),
        }
        if transport in ("vsock", "window"):
            # No virtual machine here: connections to its device arrive at a unix socket instead.
            variables["LD_PRELOAD"] = str(helper("libgpupool-bench-vsock.so"))
            variables["VSOCK_FOLDER"] = str(self.folder)
        if transport == "window":
            variables |= vm.variables(self.folder)
        if transport in self.ports:
            variables["GPUPOOL_TOKEN_FILE"] = f"{self.folder}/token"
        if transport == "tls":
            certificate = self.folder / "tls-certificate.pem"
            variables["GPUPOOL_TLS_FINGERPRINT"] = fingerprint(certificate)
        return variables

    def tls_pids(self) -> list[int]:
        """The processes that speak TLS for hostd: they are its children, one a connection."""
        return [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/stat")
            if _name_and_parent(path) == ("gpupool-tls", self.pid)
        ]

    def sessions(self) -> list[dict[str, Any]]:
        """The sessions that hostd has written down."""
        found = []
        for path in sorted((self.folder / "state" / "sessions").glob("*.json")):
            with contextlib.suppress(FileNotFoundError):  # it has just ended
                found.append(json.loads(path.read_text()))
        return found

    def session_of(self, client: int) -> Served | None:
        """The newest session of this client process."""
        served = [
            each for each in self.sessions() if client in (each["pid"], each.get("client_pid"))
        ]
        newest = max(served, key=lambda each: int(each["id"]), default=None)
        return Served(int(newest["id"]), int(newest["worker_pid"])) if newest else None

    def moved(self, session: int) -> dict[str, int]:
        """Bytes that a session's worker has copied between host memory and a GPU so far."""
        try:
            page = (self.folder / "state" / "sessions" / f"{session}.usage").read_bytes()
        except FileNotFoundError:
            return {}  # it has ended
        counted = usage_page.decode_counters(page)
        return {
            "bytes_to_device": counted.to_device_bytes,
            "bytes_from_device": counted.from_device_bytes,
        }


def _name_and_parent(stat: Path) -> tuple[str, int]:
    """Of a process, from /proc/PID/stat; nobody when it has ended."""
    try:
        name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
    except OSError:
        return "", 0
    return name, int(rest.split()[1])


def no_tls() -> str:
    """Why hostd could have no endpoint with TLS; empty when it can."""
    if native_files.locate().tls is None:
        return "gpupool-tls was not built"
    return "" if shutil.which("openssl") else "there is no openssl command to make a certificate"


def library_path(folder: Path) -> str:
    """LD_LIBRARY_PATH with this folder first."""
    before = os.environ.get("LD_LIBRARY_PATH", "")
    return f"{folder}:{before}" if before else str(folder)


def guest_folder() -> Path:
    """Where our libcuda.so.1 is. Raises HostError."""
    found = native_files.locate()
    if found.guest_dir is None:
        raise HostError(f"libcuda.so.1 was not found in {found.root}; run `gpupool doctor`")
    return found.guest_dir


def helper(name: str) -> Path:
    """A C++ part of the bench. Raises HostError when it was not built."""
    root = native_files.locate().root
    for folder in (root / "bench", root / "lib" / "bench"):
        if (folder / name).is_file():
            return folder / name
    raise HostError(f"{name} was not found in {root}; build everything: ./run build")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _endpoint(transport: str, folder: Path, port: int) -> str:
    """Where hostd listens for a transport, as TOML."""
    listens = {
        "shm": f"unix:{folder}/hostd.sock",
        "vsock": f"unix:{folder}/port-{_VSOCK_PORT}",
        "tcp": f"tcp://127.0.0.1:{port}",
        "tls": f"tls://127.0.0.1:{port}",
    }
    more = {
        "vsock": 'transports = ["vsock"]',
        "tcp": f'insecure = true\ntoken_file = "{folder}/token"',
        "tls": f'token_file = "{folder}/token"',
    }
    return f'[[endpoint]]\nlisten = "{listens[transport]}"\n{more.get(transport, "")}\n'


@contextlib.contextmanager
def hostd(
    folder: Path, gpu: str, settings: Sequence[str] = (), transports: Sequence[str] = ("shm",)
) -> Iterator[Host]:
    """Starts one in a new folder and ends it. `settings`: lines of TOML."""
    folder.mkdir()
    ports = {each: free_port() for each in transports if each in ("tcp", "tls")}
    first = (
        *(f'gpu = "{gpu}"', f'state_dir = "{folder}/state"'),
        f'vgpu_dir = "{folder}/kept"',
        *(f'admin_socket = "{folder}/admin.sock"', f"idle_timeout_s = {_IDLE_TIMEOUT_S}"),
    )
    has_vm = "window" in transports
    dialled = [each for each in transports if each != "window"]
    endpoints = [_endpoint(each, folder, ports.get(each, 0)) for each in dialled]
    endpoints += [vm.settings(folder)] if has_vm else []
    configuration = folder / "hostd.toml"
    configuration.write_text("\n".join((*first, *settings, *endpoints)))
    readable, writable = os.pipe()
    with (folder / "hostd.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 (our own module)
            [
                *(sys.executable, "-m", "gpupool.cli", "hostd"),
                *("--config", str(configuration), "--ready-fd", str(writable)),
            ],
            pass_fds=(writable,),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    os.close(writable)
    try:
        with os.fdopen(readable) as told:
            word = told.readline().strip()
        if word != "ready":
            said = (folder / "hostd.log").read_text(errors="replace")[-2000:]
            raise HostError(f"hostd did not start: {word or 'no reason given'}\n{said}")
        with vm.prepared(folder) if has_vm else contextlib.nullcontext():
            yield Host(folder, process.pid, ports)
    finally:
        process.terminate()
        process.wait(timeout=_START_TIMEOUT_S)
