"""WorkerProcesses port: real processes, watched through pidfds.

Workers outlive hostd: own session, no pipe back to us, known again by pid and start time. One way
of watching serves children and workers of an earlier hostd alike: a pidfd in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from gpupool.hostd.adapters.cache_folders import make_cache_folder
from gpupool.hostd.adapters.cgroups import Groups, join
from gpupool.hostd.adapters.waiting_workers import (
    SESSION_PLACE,
    WaitingWorkers,
    give,
    place_of,
    reap,
)
from gpupool.hostd.core.ports import PortError, WorkerEnd, WorkerOrder, WorkerProcess
from gpupool.hostd.core.sandbox import Sandbox
from gpupool.hostd.log import fields
from gpupool.wire.hello import SessionKind

log = logging.getLogger("gpupool.hostd")

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


def real_uid(pid: int) -> int | None:
    """Whom a process runs as.

    Not from the owner of /proc/PID: that is root's where the process hides its memory (proc(5)).
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return next((int(x.split()[1]) for x in status.splitlines() if x.startswith("Uid:")), None)


def cleaned_environment(environment: Mapping[str, str], cache_folder: str = "") -> dict[str, str]:
    """What a worker inherits: nothing that changes which libraries it loads.

    Without a folder for it the driver keeps no compiled code.
    """
    kept = {
        key: value
        for key, value in environment.items()
        if key in _PASSED_ON or key.startswith("GPUPOOL_SOFTGPU_")
    }
    cache = {"CUDA_CACHE_PATH": cache_folder} if cache_folder else {"CUDA_CACHE_DISABLE": "1"}
    # Without HOME libraries ask for the user's, which may take a connection to a name service.
    return {"PATH": _DEFAULT_PATH, "HOME": "/nonexistent", **kept, **cache}


class SubprocessWorkers:
    """Implements `ports.WorkerProcesses`.

    Must be used from the thread of the running event loop.
    """

    def __init__(
        self,
        program: Path | None,
        tail: list[str],
        sandbox: Sandbox = Sandbox(),  # noqa: B008 (frozen)
        groups: Groups | None = None,
        renderer: Path | None = None,
    ) -> None:
        """`tail`: arguments that every worker gets (see `common_arguments`). `renderer`: the
        program that serves OpenGL.
        """
        self._program = program
        self._renderer = renderer
        self._tail = tail
        self._sandbox = sandbox
        self._groups = groups if sandbox.cgroup else None
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._waiting = WaitingWorkers()

    def isolation(self, tenant: int) -> tuple[str, ...]:
        """What the workers of that tenant will have given up."""
        return self._sandbox.words(tenant)

    def start(self, order: WorkerOrder) -> WorkerProcess:
        """Gives the client to a worker that waits, or starts one. Raises PortError."""
        ours = (order.socket_fd, order.window_fd, order.usage_fd, order.exchange_fd)
        pages = (*order.quota_fds, *order.account_fds, *order.lane_fds, *order.lease_fds)
        fds = tuple(fd for fd in (*ours, order.client_pidfd, *pages) if fd is not None)
        cuda = order.kind is SessionKind.CUDA
        child = self._use_waiting(order, fds) if cuda else None
        if child is None:
            program = self._program if cuda else self._renderer_program()
            child = self._spawn(program, order.tenant, arguments(order), fds, order.devices)
            self._enter_group(order.session_id, child.pid)
        ticks = start_ticks(child.pid)
        self._children[child.pid] = child
        return WorkerProcess(child.pid, ticks or 0)

    def prepare(
        self, tenant: int, library: str, devices: tuple[str, ...], *, context: bool
    ) -> bool:
        """Starts one ahead of need."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [
            "--order-fd",
            str(theirs.fileno()),
            "--prepare-context",
            "yes" if context else "no",
        ]
        words += ["--library", library, "--devices", ",".join(devices)]
        words += ["--session-id", SESSION_PLACE]
        try:
            with theirs:
                fds = (theirs.fileno(),)
                child = self._spawn(self._program, tenant, words, fds, devices)
            mine.setblocking(False)
            self._waiting.add(child, mine, tenant, library, devices)
        except (PortError, OSError) as error:
            mine.close()
            log.warning("no worker ahead of need", extra=fields({"error": str(error)}))
            return False
        return True

    def prepared(self, tenant: int | None = None) -> int:
        """How many wait."""
        return self._waiting.count(tenant)

    def discard(self, tenant: int) -> None:
        """Ends those of that tenant that wait."""
        self._waiting.discard(tenant)

    def _use_waiting(
        self, order: WorkerOrder, fds: tuple[int, ...]
    ) -> subprocess.Popen[bytes] | None:
        one = self._waiting.take(order.tenant, order.library, order.devices)
        if one is None:
            return None
        # In its cgroup before it can read anything of its client's.
        self._enter_group(order.session_id, one.child.pid)
        if give(one, arguments(order, lambda fd: place_of(fd, fds)), fds):
            return one.child
        reap(one)
        return None

    def _renderer_program(self) -> Path:
        if self._renderer is None:
            raise PortError(
                "OpenGL was asked for, and gpupool-renderer is not built here: it needs "
                "virglrenderer (Debian: libvirglrenderer-dev, libegl-dev) when gpupool is built"
            )
        return self._renderer

    def _spawn(
        self,
        program: Path | None,
        tenant: int,
        words: list[str],
        fds: tuple[int, ...],
        devices: tuple[str, ...],
    ) -> subprocess.Popen[bytes]:
        if program is None:
            raise PortError(
                "gpupool-worker is not built or not installed; run `gpupool doctor` on the host"
            )
        sandbox = self._sandbox
        cache = make_cache_folder(sandbox.cache(tenant), sandbox.user(tenant))
        try:
            return subprocess.Popen(  # noqa: S603 (our own worker)
                [str(program), *words, *sandbox.arguments(tenant, cache), *self._tail],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),  # stray output of a library belongs in the log
                pass_fds=fds,
                # Or the driver has every card open, also one that leaves the pool.
                env={
                    **cleaned_environment(os.environ, cache),
                    "CUDA_VISIBLE_DEVICES": ",".join(devices),
                },
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise PortError(f"{program}: {error.strerror}") from error

    def _enter_group(self, session_id: int, pid: int) -> None:
        """Before the worker can have read anything of its client's: it has yet to load a driver."""
        group = self._groups.create(session_id) if self._groups is not None else None
        if group is None:
            return
        try:
            join(group, pid)
        except OSError as error:
            log.error(
                "worker not in its cgroup",
                extra=fields({"session": session_id, "error": str(error)}),
            )

    def find(self, session_id: int, tenant: int) -> WorkerProcess | None:
        """Looks through /proc for our worker program serving that session."""
        programs = {os.fsencode(one) for one in (self._program, self._renderer) if one is not None}
        wanted = [b"--session-id", str(session_id).encode()]
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                user = self._sandbox.user(tenant)
                possible = {os.getuid(), user.uid if user else os.getuid()}
                if not programs & set(words[:2]) or real_uid(int(entry.name)) not in possible:
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
            if self._groups is not None:
                self._groups.remove_empty()
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


def common_arguments(
    host_version: str, protocol: str, log_level: str, *, json: bool, priorities: bool
) -> list[str]:
    """What every worker of this hostd is told."""
    yes = {True: "yes", False: "no"}
    words = ["--log-level", log_level, "--log-json", yes[json], "--log-priorities", yes[priorities]]
    return [*words, "--protocol", protocol, "--host-version", host_version]


def arguments(order: WorkerOrder, name: Callable[[int], str] = str) -> list[str]:
    """The worker's command line, after the program. hostd/worker/main.cpp reads it.

    `name`: what a descriptor is called there.
    """
    words = ["--socket-fd", name(order.socket_fd), "--usage-fd", name(order.usage_fd)]
    for fd in order.lane_fds:
        words += ["--lane-fd", name(fd)]
    if order.asked_lanes:
        words += ["--asked-lanes", str(order.asked_lanes)]
    if order.window_fd is not None:
        words += ["--window-fd", name(order.window_fd)]
    if order.client_pidfd is not None:
        words += ["--client-pidfd", name(order.client_pidfd)]
    if order.exchange_fd is not None:
        words += ["--exchange-fd", name(order.exchange_fd)]
    for option, pages in (
        ("--quota-fds", order.quota_fds),
        ("--account-fds", order.account_fds),
        ("--lease-fds", order.lease_fds),
    ):
        if pages:
            words += [option, ",".join(name(fd) for fd in pages)]
    for option, rows in (("--vgpu-rows", order.vgpu_rows), ("--account-rows", order.account_rows)):
        if rows:
            words += [option, ",".join(str(row) for row in rows)]
    words += ["--transport", order.transport]
    words += ["--window-base", f"{order.window_base:#x}", "--window-bytes", str(order.window_bytes)]
    words += ["--window-offset", str(order.window_offset)]
    words += ["--library", order.library, "--devices", ",".join(order.devices)]
    words += ["--session-id", str(order.session_id)]
    words += [
        "--compute-percent",
        str(order.compute_percent),
        "--memory-mib",
        str(order.memory_mib),
    ]
    caps = order.caps
    words += ["--pinned-mib", str(caps.pinned_mib), "--image-mib", str(caps.image_mib)]
    words += ["--handles", str(caps.handles), "--streams", str(caps.streams)]
    words += ["--launch-threads", str(caps.launch_threads), "--zero-copy", caps.zero_copy]
    words += ["--opengl", "yes" if caps.opengl else "no"]
    words += ["--scrub", "yes" if caps.scrub else "no"]
    return words
