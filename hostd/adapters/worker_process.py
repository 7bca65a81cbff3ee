"""WorkerProcesses port: real processes, watched through pidfds.

Workers outlive hostd: own session, no pipe back to us, known again by pid and start time. One way
of watching serves children and workers of an earlier hostd alike: a pidfd in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from gpupool.hostd.core.ports import PortError, WorkerEnd, WorkerOrder, WorkerProcess

_PASSED_ON = ("PATH", "HOME", "LANG")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc(5), field 22 of stat).

    None: there is none, or a zombie.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[
        2
    ].split()  # comm may hold spaces and parentheses; after it comes field 3
    return None if fields[0] in "ZX" else int(fields[19])


def cleaned_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker inherits: nothing that changes which libraries it loads."""
    kept = {
        key: value
        for key, value in environment.items()
        if key in _PASSED_ON or key.startswith("GPUPOOL_SOFTGPU_")
    }
    return {"PATH": _DEFAULT_PATH, **kept}


class SubprocessWorkers:
    """Implements `ports.WorkerProcesses`.

    Must be used from the thread of the running event loop.
    """

    def __init__(
        self, program: Path | None, host_version: str, protocol: str, log_level: str
    ) -> None:
        self._program = program
        self._tail = [
            "--log-level",
            log_level,
            "--protocol",
            protocol,
            "--host-version",
            host_version,
        ]
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, order: WorkerOrder) -> WorkerProcess:
        """Starts a worker. Raises PortError."""
        if self._program is None:
            raise PortError(
                "gpupool-worker is not built or not installed; run `gpupool doctor` on the host"
            )
        command = [str(self._program), *arguments(order), *self._tail]
        fds = tuple(
            fd
            for fd in (order.socket_fd, order.window_fd, order.client_pidfd, order.exchange_fd)
            if fd is not None
        )
        try:
            child = subprocess.Popen(  # noqa: S603 (our own worker)
                command,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),  # stray output of a library belongs in the log
                pass_fds=fds,
                env=cleaned_environment(os.environ),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise PortError(f"{self._program}: {error.strerror}") from error
        ticks = start_ticks(child.pid)
        self._children[child.pid] = child
        return WorkerProcess(child.pid, ticks or 0)

    def find(self, session_id: int) -> WorkerProcess | None:
        """Looks through /proc for our worker program serving that session."""
        if self._program is None:
            return None
        wanted = [b"--session-id", str(session_id).encode()]
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if (
                    os.fsencode(self._program) not in words[:2]
                    or entry.stat().st_uid != os.getuid()
                ):
                    continue
                ticks = start_ticks(int(entry.name))
                if ticks is not None and wanted in [words[i : i + 2] for i in range(len(words))]:
                    return WorkerProcess(int(entry.name), ticks)
        return None

    def watch(self, process: WorkerProcess, on_end: Callable[[WorkerEnd], None]) -> bool:
        """Waits for the end in the event loop."""
        child = self._children.get(process.pid)
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return False
        except OSError as error:
            raise PortError(f"cannot watch worker {process.pid}: {error.strerror}") from error
        # After the open: from here on the pid cannot come to mean another process without us
        # noticing.
        if child is None and start_ticks(process.pid) != process.start_ticks:
            os.close(pidfd)
            return False
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            exit_code = child.wait() if child is not None else None  # dead already: does not wait
            self._children.pop(process.pid, None)
            on_end(WorkerEnd(exit_code))

        loop.add_reader(pidfd, gone)
        return True

    def stop(self, process: WorkerProcess, *, kill: bool) -> None:
        """Signals the worker, and only it: never a process that has its pid by now."""
        try:
            pidfd = os.pidfd_open(process.pid)
        except OSError:
            return
        try:
            if process.pid in self._children or start_ticks(process.pid) == process.start_ticks:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL if kill else signal.SIGTERM)
        finally:
            os.close(pidfd)


def arguments(order: WorkerOrder) -> list[str]:
    """The worker's command line, after the program. hostd/worker/main.cpp reads it."""
    words = ["--socket-fd", str(order.socket_fd)]
    if order.window_fd is not None:
        words += ["--window-fd", str(order.window_fd)]
    if order.client_pidfd is not None:
        words += ["--client-pidfd", str(order.client_pidfd)]
    if order.exchange_fd is not None:
        words += ["--exchange-fd", str(order.exchange_fd)]
    words += ["--transport", order.transport]
    words += ["--window-base", f"{order.window_base:#x}", "--window-bytes", str(order.window_bytes)]
    words += ["--library", order.library, "--devices", ",".join(order.devices)]
    words += ["--session-id", str(order.session_id)]
    words += [
        "--compute-percent",
        str(order.compute_percent),
        "--memory-mib",
        str(order.memory_mib),
    ]
    return words
