"""What the core needs from the machine: one Protocol a port, one real adapter and one fake for
each.

| port | adapter | fake |
|---|---|---|
| GpuSource | adapters/nvml.py, adapters/software_gpu.py | tests/fakes/gpus.py |
| WorkerProcesses | adapters/worker_process.py | tests/fakes/workers.py |
| SessionStore | adapters/session_files.py | tests/fakes/sessions.py |
| Windows | adapters/window.py | tests/fakes/windows.py |
| window.VmWindows | adapters/vm_windows.py | tests/fakes/windows.py |
| Exchange | adapters/exchange.py | tests/fakes/exchanges.py |
| Clock | adapters/clock.py | tests/fakes/clock.py |
| Clients | adapters/client_process.py | tests/fakes/clients.py |
| VgpuPages | adapters/vgpu_files.py | tests/fakes/vgpu_pages.py |
| VgpuStore | adapters/vgpu_store.py | tests/fakes/vgpu_store.py |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gpupool.hostd.core.admission import Caps
from gpupool.hostd.core.gpu import Inventory
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.vgpu import Seat, Vgpu
from gpupool.wire.hello import SessionKind


class PortError(RuntimeError):
    """The machine refused.

    The text says what was tried, what went wrong and, where known, what to do.
    """


class GpuSource(Protocol):
    """Looks at the machine."""

    def discover(self) -> Inventory:
        """What is there now.

        Never raises for a missing GPU: the inventory's notes say why there is none.
        """
        ...


@dataclass(frozen=True, slots=True)
class WorkerOrder:
    """Everything a worker is told.

    Descriptors are borrowed: the caller closes its own copies afterwards.
    """

    session_id: int
    socket_fd: int
    window_fd: int | None  # None: the transport has no shared memory; borrowed as the others
    usage_fd: int  # its usage page, to write
    client_pidfd: int | None
    transport: str
    window_base: int
    window_bytes: int
    library: str
    devices: tuple[str, ...]
    compute_percent: int
    memory_mib: int
    caps: Caps = Caps()  # noqa: RUF009 (frozen)
    exchange_fd: int | None = None
    tenant: int = 0  # Session.tenant_number
    kind: SessionKind = SessionKind.CUDA
    window_offset: int = 0  # in the file of window_fd, a virtual machine's
    lane_fds: tuple[int, ...] = ()  # further connections
    asked_lanes: int = 0  # so many had the client opened
    # Of its vGPUs, in the order of `devices`; all empty: nothing is enforced.
    quota_fds: tuple[int, ...] = ()  # to read only
    account_fds: tuple[int, ...] = ()
    lease_fds: tuple[int, ...] = ()
    vgpu_rows: tuple[int, ...] = ()  # of the quota pages
    account_rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A process that exists, told apart from a later one with the same pid."""

    pid: int
    start_ticks: int


# hostd/worker/log.hpp, and what the kernel does where SIGSYS (31) has no handler.
_EXIT_CODES = {
    75: " (the vGPU's memory was used up, and OpenGL's protocol has no other way to say so)",
    76: " (the client broke the protocol)",
    77: " (a system call that the sandbox refuses; the worker's line above says which)",
}
_SIGNALS = {31: " (a system call that the sandbox refuses)"}


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """How a worker ended. `exit_code` is negative for a signal, None when it was not our child."""

    exit_code: int | None

    @property
    def text(self) -> str:
        """For logs."""
        if self.exit_code is None:
            return "ended (not started by this hostd, its exit code is not known)"
        if self.exit_code < 0:
            return f"killed by signal {-self.exit_code}{_SIGNALS.get(-self.exit_code, '')}"
        return f"exited with {self.exit_code}{_EXIT_CODES.get(self.exit_code, '')}"


class WorkerProcesses(Protocol):
    """Starts, finds again, watches and stops workers."""

    def start(self, order: WorkerOrder) -> WorkerProcess:
        """Starts one. Raises PortError."""
        ...

    def prepare(
        self, tenant: int, library: str, devices: tuple[str, ...], *, context: bool
    ) -> bool:
        """Starts one ahead of need, which a later start() of that tenant, library and devices
        takes. False, and logged, when it cannot be started.
        """
        ...

    def prepared(self, tenant: int | None = None) -> int:
        """How many wait, of that tenant or of all."""
        ...

    def discard(self, tenant: int) -> None:
        """Ends those of that tenant that wait."""
        ...

    def isolation(self, tenant: int) -> tuple[str, ...]:
        """What keeps the workers of that tenant from the rest of the machine, in words."""
        ...

    def find(self, session_id: int, tenant: int) -> WorkerProcess | None:
        """Looks for a running worker of that session that nobody wrote down.

        None when there is none.
        """
        ...

    def watch(self, process: WorkerProcess, on_end: Callable[[WorkerEnd], None]) -> bool:
        """Calls `on_end` once when the process is gone.

        False when it is gone already (`on_end` is not called).
        """
        ...

    def stop(self, process: WorkerProcess, *, kill: bool) -> None:
        """SIGTERM, or SIGKILL. A process that is gone is no error."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """What one session uses of one GPU."""

    memory_bytes: int
    utilization_percent: int  # share of the past second in which it had work outstanding


@dataclass(frozen=True, slots=True)
class Counters:
    """What one session has done since it began."""

    messages: int = 0
    answers: int = 0  # that its client waited for
    launches: int = 0
    to_device_bytes: int = 0  # of copies between host memory and a GPU
    from_device_bytes: int = 0
    busy_ns: int = 0  # in which its worker was executing messages
    zero_copy_bytes: int = 0  # sent to its client by reference
    zero_copy_refused: int = 0  # sends that were copies because the kernel had no room

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            self.messages + other.messages,
            self.answers + other.answers,
            self.launches + other.launches,
            self.to_device_bytes + other.to_device_bytes,
            self.from_device_bytes + other.from_device_bytes,
            self.busy_ns + other.busy_ns,
            self.zero_copy_bytes + other.zero_copy_bytes,
            self.zero_copy_refused + other.zero_copy_refused,
        )


class SessionStore(Protocol):
    """What survives hostd: one record a session."""

    def load(self) -> list[Session]:
        """Every record that can be read. Others are reported and left out."""
        ...

    def save(self, session: Session) -> None:
        """Writes or replaces a record, atomically. Raises PortError."""
        ...

    def remove(self, session_id: int) -> None:
        """Forgets it, and its usage page. A missing record is no error."""
        ...

    def create_usage(self, session_id: int) -> int:
        """A descriptor of a fresh usage page, for the worker. Raises PortError."""
        ...

    def close_usage(self, fd: int) -> None:
        """Closes hostd's copy of that descriptor."""
        ...

    def usage(self, session_id: int) -> tuple[DeviceUsage, ...]:
        """What the worker says it uses, by the session's index of the device.

        Empty when it has not said anything yet.
        """
        ...

    def counters(self, session_id: int) -> Counters:
        """What the worker says it has done; all zero when it has not said anything yet."""
        ...

    def next_id(self) -> int:
        """A number that no session before had, also not before a restart. Raises PortError."""
        ...


class Windows(Protocol):
    """Makes windows."""

    def create(self, window_bytes: int) -> int:
        """A descriptor of new shared memory that can neither shrink nor grow. Raises PortError."""
        ...

    def close(self, fd: int) -> None:
        """Closes hostd's copy."""
        ...


class Exchange(Protocol):
    """Where workers of one tenant leave memory and events for each other."""

    def join(self, session_id: int, tenant: str) -> int:
        """The descriptor that the worker gets. Raises PortError."""
        ...

    def close(self, fd: int) -> None:
        """Closes hostd's copy of what join() gave."""
        ...

    def leave(self, session_id: int) -> None:
        """Forgets what the session has left there. One that never joined is no error."""
        ...


class Clock(Protocol):
    """Time."""

    def monotonic_s(self) -> float:
        """Seconds that only grow."""
        ...

    def utc_text(self) -> str:
        """Now, as UTC in ISO 8601 with seconds."""
        ...

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Does something once, after that time."""
        ...


@dataclass(frozen=True, slots=True)
class Client:
    """A client as the kernel knows it: a process of this host, or the far end of a connection."""

    pid: int = 0  # 0: none of ours
    start_ticks: int = 0
    address: str = ""  # of a connection, as `Peer.address`


class Clients(Protocol):
    """Notices when a client is gone, without help from its worker."""

    def identify(self, peer_pid: int, address: str) -> Client:
        """The client to watch, found again by `watch` also in a later hostd."""
        ...

    def watch(self, session_id: int, client: Client, on_gone: Callable[[], None]) -> None:
        """Calls `on_gone` once it is gone, unless `forget` came first."""
        ...

    def forget(self, session_id: int) -> None:
        """The session has ended."""
        ...


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session's row in a quota page."""

    session_id: int
    vgpu_row: int
    worker: WorkerProcess


@dataclass(frozen=True, slots=True)
class AccountUse:
    """What the sessions of one vGPU use, together."""

    memory_bytes: int = 0  # what their programs asked for
    overhead_bytes: int = 0  # what the driver took besides

    def __add__(self, other: AccountUse) -> AccountUse:
        return AccountUse(
            self.memory_bytes + other.memory_bytes, self.overhead_bytes + other.overhead_bytes
        )


@dataclass(frozen=True, slots=True)
class GpuPages:
    """Everything that should stand in the pages of one GPU."""

    vgpus: Mapping[int, Vgpu]  # by row
    sessions: Mapping[int, SessionRow]  # by row


class ProcessMemory(Protocol):
    """What the driver says that processes hold of its GPUs."""

    def look(self) -> Mapping[str, Mapping[int, int]]:
        """Bytes by UUID and process id; nothing where the driver does not tell. Takes
        milliseconds.
        """
        ...


class VgpuPages(Protocol):
    """The pages that workers and arbiters share with hostd (hostd/pages). All raise PortError."""

    def write_vgpu(self, gpu: str, row: int, vgpu: Vgpu | None) -> None:
        """Fills or clears a vGPU's row of the GPU's quota page, and wakes who watches it."""
        ...

    def write_session(self, gpu: str, row: int, session: SessionRow | None) -> None:
        """Fills or clears a session's row there."""
        ...

    def write_account(self, vgpu_id: int, row: int, session_id: int) -> None:
        """A fresh row of the vGPU's account page, which is made if missing; session 0 clears it."""
        ...

    def remove_account(self, vgpu_id: int) -> None:
        """Nobody uses that page any more. A missing one is no error."""
        ...

    def use(self, vgpu_id: int, rows: Collection[int]) -> AccountUse:
        """What the sessions in these rows say they use; nothing where there is no page."""
        ...

    def write_overhead(self, vgpu_id: int, row: int, overhead_bytes: int) -> None:
        """What the driver was measured to hold for that row's session besides."""
        ...

    def open(self, session_id: int, seat: Seat) -> tuple[int, int, int]:
        """Descriptors for a worker: quota page, account page, and a fresh lease page."""
        ...

    def close(self, fds: Sequence[int]) -> None:
        """Closes hostd's copies of what open() gave."""
        ...

    def remove_lease(self, gpu: str, session_id: int) -> None:
        """The session has ended. A missing page is no error."""
        ...

    def restore(
        self, gpus: Mapping[str, GpuPages], accounts: Mapping[int, Mapping[int, int]]
    ) -> None:
        """Makes all pages say this and no more, whatever an earlier hostd left half done.

        `accounts`: by vGPU, which session has which row.
        """
        ...


class VgpuStore(Protocol):
    """The named vGPUs: what survives a reboot."""

    def load(self) -> list[Vgpu]:
        """Every record that can be read. Others are reported and left out."""
        ...

    def save(self, vgpu: Vgpu) -> None:
        """Writes or replaces a record, atomically and for good. Raises PortError."""
        ...

    def remove(self, vgpu: Vgpu) -> None:
        """Forgets it. Raises PortError; a missing record is no error."""
        ...
