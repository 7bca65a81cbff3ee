"""A real hostd with the software GPU, and a way to run programs on its vGPU over each transport.

`host` is one hostd for the whole test run; `own_host` is one for a test that breaks things.
`transport` makes a test run once over shared memory and once over TCP, or over those that
GPUPOOL_TEST_TRANSPORTS names (`shm,tcp,tls,window`). GPUPOOL_TEST_GPU=nvidia runs the same tests on
the machine's NVIDIA GPUs; what only the software GPU has is marked `softgpu`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpupool.cli import admin
from gpupool.wire.proto import quiet_forks
from tests.stand_in import StandIn

ROOT = Path(__file__).parent.parent
TRANSPORTS = tuple(os.environ.get("GPUPOOL_TEST_TRANSPORTS", "shm,tcp").split(","))
TEST_GPU = os.environ.get("GPUPOOL_TEST_GPU", "software")


def pytest_configure() -> None:
    """Signals as a terminal gives them: a run started by nohup ignores SIGHUP, one started with `&`
    in a script SIGINT and SIGQUIT, and every program that a test starts would inherit that.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    quiet_forks()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out, on an NVIDIA GPU, what only the software GPU has."""
    if TEST_GPU == "software":
        return
    for item in items:
        if item.get_closest_marker("softgpu"):
            item.add_marker(pytest.mark.skip(reason=f"not on gpu = {TEST_GPU}"))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Host:
    """A running hostd and what clients need to reach it."""

    folder: Path
    native: Path
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    tls_port: int = 0
    stand_in: StandIn | None = None
    crash_expected: bool = False  # a worker of this host is made to die of a signal

    @property
    def log(self) -> str:
        """Everything that hostd and its workers have logged."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Starts hostd and waits until it takes clients."""
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "gpupool.cli",
                    "hostd",
                    "--config",
                    str(self.folder / "hostd.toml"),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
                env=dict(os.environ, **self.environment),
            )
        try:
            self.wait_until(lambda: self._listens(), "hostd to listen")
        except BaseException:  # nobody else would end it
            self.process.kill()
            self.process.wait()
            raise

    def _listens(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"hostd ended with {self.process.returncode}:\n{self.log}")
        try:
            self.status()
        except admin.UnreachableError:
            return False
        return True

    def stop(self) -> None:
        """Ends hostd; its workers go on, as they do when hostd is restarted."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(timeout=20)

    def wait_until(self, condition: Any, what: str, timeout_s: float = 30) -> None:
        """Waits for a condition with a bound; the failure shows hostd's log."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout_s} s for {what}:\n{self.log[-4000:]}")
            time.sleep(0.05)

    def status(self) -> dict[str, Any]:
        """What hostd says of itself; asked without a process, tests do it again and again."""
        return admin.call(self.folder / "admin.sock", "status")

    def sessions(self) -> list[dict[str, Any]]:
        """Its sessions, as `gpupool status --json` has them."""
        found: list[dict[str, Any]] = self.status()["sessions"]
        return found

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs `gpupool ARGUMENTS` against this hostd's admin socket."""
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "gpupool.cli",
                *arguments,
                "--admin-socket",
                str(self.folder / "admin.sock"),
            ],
            capture_output=True,
            text=True,
            check=check,
            timeout=60,
        )

    def client_environment(self, transport: str) -> dict[str, str]:
        """Variables under which a program finds our libcuda and this host."""
        if transport == "window":
            return dict(self._common(transport), **self._stand_in().variables(transport))
        endpoints = {
            "shm": f"unix:{self.folder}/hostd.sock",
            "tls": f"tls://127.0.0.1:{self.tls_port}",
        }
        endpoint = endpoints.get(transport, f"tcp://127.0.0.1:{self.port}")
        secure = {"GPUPOOL_TLS_FINGERPRINT": self.fingerprint()} if transport == "tls" else {}
        return dict(self._common(transport), **secure, GPUPOOL_ENDPOINT=endpoint)

    def _stand_in(self) -> StandIn:
        """The virtual machine whose programs the transport `window` is for."""
        if self.stand_in is None:
            self.stand_in = StandIn(self.folder, self.native)
        return self.stand_in

    def _common(self, transport: str) -> dict[str, str]:
        return dict(
            os.environ,
            LD_LIBRARY_PATH=str(self.native / "lib" / "guest"),
            PYTHONPATH=str(ROOT),  # for what test programs share
            GPUPOOL_TRANSPORT=transport,
            GPUPOOL_TOKEN_FILE=str(self.folder / "token"),
            # Writes of ours to memory that we have freed then meet the program's own.
            PYTHONMALLOC="malloc",
        )

    def fingerprint(self) -> str:
        """Of the certificate that hostd has made for its tls endpoint."""
        from gpupool.hostd.adapters import certificate

        return certificate.fingerprint(self.folder / "tls-certificate.pem")

    def start_client(
        self, transport: str, *command: str, **variables: str
    ) -> subprocess.Popen[str]:
        """Starts a program on a vGPU."""
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(self.client_environment(transport), **variables),
        )

    def run(
        self, transport: str, *command: str, timeout_s: float = 120, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program on a vGPU to its end."""
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env=dict(self.client_environment(transport), **variables),
        )

    def run_python(self, transport: str, text: str, **variables: str) -> str:
        """Runs Python text on a vGPU; its output. An exit code other than 0 fails the test."""
        done = self.run(transport, sys.executable, "-c", text, timeout_s=120, **variables)
        assert done.returncode == 0, (
            f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.log[-3000:]}"
        )
        return done.stdout


def native_dir() -> Path:
    """The folder with libcuda.so.1, the worker and the software GPU."""
    return Path(os.environ.get("GPUPOOL_NATIVE_DIR", ROOT / "build" / "native"))


def add_tls(host: Host) -> str:
    """A tls endpoint for a configuration, with a certificate of hostd's own."""
    host.tls_port = free_port()
    listen = f"tls://127.0.0.1:{host.tls_port}"
    return f'[[endpoint]]\nlisten = "{listen}"\ntoken_file = "{host.folder}/token"\n'


def make_host(folder: Path, gpu: str = TEST_GPU, more: str = "", **softgpu: int) -> Host:
    """Writes a configuration, with `more` at its end, and starts a hostd on it.

    `softgpu`: settings of the software GPU.
    """
    native = native_dir()
    if not (native / "lib" / "guest" / "libcuda.so.1").exists():
        pytest.skip(f"{native} has no libcuda.so.1: run ./run build")
    host = Host(folder, native, free_port(), {"GPUPOOL_NATIVE_DIR": str(native)})
    for name, value in softgpu.items():
        host.environment[f"GPUPOOL_SOFTGPU_{name.upper()}"] = str(value)
    folder.chmod(0o711)  # workers of other users find their cache below it
    if "window" in TRANSPORTS and "[vm]" not in more:
        more += '[vm]\nrelay = "no"\n'
    if "tls" in TRANSPORTS or more == "tls":
        more = add_tls(host) + more.removeprefix("tls")
    (folder / "hostd.toml").write_text(
        f"""
gpu = "{gpu}"
state_dir = "{folder}/state"
vgpu_dir = "{folder}/kept"
admin_socket = "{folder}/admin.sock"
[sandbox]
cache_dir = "{folder}/cache"
[limits]
window_mib = 1024
[[endpoint]]
listen = "unix:{folder}/hostd.sock"
[[endpoint]]
listen = "tcp://127.0.0.1:{host.port}"
insecure = true
token_file = "{folder}/token"
{more}"""
    )
    host.start()
    return host


def check_log(host: Host) -> None:
    """No worker may have died of a signal, and a sanitizer's build must not have complained."""
    signals = set() if host.crash_expected else {4, 6, 7, 8, 11}
    crashes = tuple(f'killed by signal {each}"' for each in signals)
    bad = ("runtime error:", "Sanitizer", *crashes)
    wrong = [line for line in host.log.splitlines() if any(each in line for each in bad)]
    assert not wrong, "\n".join(wrong[:20])


def processes_below(folder: Path) -> list[int]:
    """Processes whose command line names the folder; they read it while it may be going."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def end_host(host: Host) -> None:
    """Stops hostd and every worker it started, also where it does not answer any more."""
    try:
        if host.stand_in is not None:
            host.stand_in.end()
        workers = [session["worker_pid"] for session in host.sessions()]
        for pid in workers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # ended with its client
        host.wait_until(lambda: not host.sessions(), "the sessions to end")  # hostd clears up
        host.stop()
        check_log(host)
    except BaseException:
        if host.process is not None:
            host.process.kill()
            host.process.wait()
        for pid in processes_below(host.folder):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        raise


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """One hostd for all tests that leave it as it was."""
    # Not tmp_path: a unix socket's path is at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        one = make_host(Path(name))
        yield one
        end_host(one)


@pytest.fixture
def own_host() -> Iterator[Host]:
    """A hostd of the test's own."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        one = make_host(Path(name))
        yield one
        if one.process is not None and one.process.poll() is None:
            end_host(one)


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """Each transport in turn."""
    name: str = request.param
    return name
