"""GpuUsers port: what of this hostd's own uses a GPU, as the table of sessions tells."""

from __future__ import annotations

from collections.abc import Callable

from gpupool.hostd.core.host import Host


class HostGpuUsers:
    """Implements `pool_ports.GpuUsers`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        # Names of the reserved vGPUs on a GPU.
        self.reserved_on: Callable[[str], tuple[str, ...]] = lambda _: ()
        # Others that hold a GPU without a session. Each lets go, or says False: ask again.
        self.holders: list[Callable[[str], bool]] = []

    def sessions(self, uuid: str) -> tuple[int, ...]:
        """Those with a vGPU on it."""
        return tuple(one.id for one in self._host.sessions if uuid in one.devices)

    def workers(self) -> dict[int, int]:
        """Session by pid of its worker."""
        return {one.worker_pid: one.id for one in self._host.sessions if one.worker_pid}

    def reserved(self, uuid: str) -> tuple[str, ...]:
        """Names of the reserved vGPUs on it."""
        return self.reserved_on(uuid)

    def end(self, session_id: int, *, kill: bool) -> None:
        """Tells the worker of a session to stop."""
        self._host.end(session_id, kill=kill)

    def release(self, uuid: str) -> bool:
        """Ends waiting workers and whatever else has been told of."""
        self._host.end_waiting()
        return all([let_go(uuid) for let_go in self.holders])
