"""WorkerProcesses fake: processes that exist only here, and end when the test says so."""

from __future__ import annotations

from collections.abc import Callable

from gpupool.hostd.core.ports import PortError, WorkerEnd, WorkerOrder, WorkerProcess


class FakeWorkers:
    """Implements `ports.WorkerProcesses`."""

    def __init__(self) -> None:
        self.orders: list[WorkerOrder] = []
        self.running: dict[int, WorkerProcess] = {}  # by session
        self.stopped: list[tuple[WorkerProcess, bool]] = []
        self.fail_start = ""
        self.fail_watch = ""
        self._watchers: dict[WorkerProcess, Callable[[WorkerEnd], None]] = {}
        self._next_pid = 1000
        self.waiting: list[int] = []  # tenants
        self.prepared_on: list[tuple[str, ...]] = []  # GPUs of each that was ever started

    def start(self, order: WorkerOrder) -> WorkerProcess:
        """Starts, or fails as the test asked."""
        if self.fail_start:
            raise PortError(self.fail_start)
        self._next_pid += 1
        process = WorkerProcess(self._next_pid, self._next_pid * 10)
        self.orders.append(order)
        if order.tenant in self.waiting:
            self.waiting.remove(order.tenant)
        self.running[order.session_id] = process
        return process

    def prepare(
        self,
        tenant: int,
        library: str,  # noqa: ARG002
        devices: tuple[str, ...],
        *,
        context: bool,  # noqa: ARG002
    ) -> bool:
        """Starts, or fails as the test asked."""
        if not self.fail_start:
            self.waiting.append(tenant)
            self.prepared_on.append(devices)
        return not self.fail_start

    def prepared(self, tenant: int | None = None) -> int:
        """How many wait."""
        return sum(tenant in (None, one) for one in self.waiting)

    def discard(self, tenant: int) -> None:
        """Ends those of that tenant."""
        self.waiting = [one for one in self.waiting if one != tenant]

    def isolation(self, tenant: int) -> tuple[str, ...]:
        """One word that names the tenant."""
        return (f"user {tenant}",)

    def find(self, session_id: int, tenant: int) -> WorkerProcess | None:  # noqa: ARG002
        """A running worker of that session."""
        return self.running.get(session_id)

    def watch(self, process: WorkerProcess, on_end: Callable[[WorkerEnd], None]) -> bool:
        """Remembers whom to call."""
        if self.fail_watch:
            raise PortError(self.fail_watch)
        if process not in self.running.values():
            return False
        self._watchers[process] = on_end
        return True

    def stop(self, process: WorkerProcess, *, kill: bool) -> None:
        """Notes the signal; a fake worker does not end by itself."""
        self.stopped.append((process, kill))

    def end(self, session_id: int, exit_code: int | None = 0) -> None:
        """The worker of that session ends."""
        process = self.running.pop(session_id)
        self._watchers.pop(process)(WorkerEnd(exit_code))
