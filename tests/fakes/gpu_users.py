"""GpuUsers fake: sessions that the test begins and ends."""

from __future__ import annotations


class FakeGpuUsers:
    """Implements `pool_ports.GpuUsers`."""

    def __init__(self) -> None:
        self.on: dict[int, tuple[str, ...]] = {}  # GPUs by session; its worker has pid 1000 + id
        self.names: tuple[str, ...] = ()  # reserved vGPUs, on each GPU
        self.told: list[tuple[int, bool]] = []
        self.released: list[str] = []
        self.busy = False  # something takes its time to let go

    def sessions(self, uuid: str) -> tuple[int, ...]:
        """By number."""
        return tuple(one for one, uuids in sorted(self.on.items()) if uuid in uuids)

    def workers(self) -> dict[int, int]:
        """Session by pid."""
        return {1000 + one: one for one in self.on}

    def reserved(self, uuid: str) -> tuple[str, ...]:  # noqa: ARG002
        """The same on each."""
        return self.names

    def end(self, session_id: int, *, kill: bool) -> None:
        """Notes it. Like a real worker, one that is killed ends."""
        self.told.append((session_id, kill))
        if kill:
            self.on.pop(session_id, None)

    def release(self, uuid: str) -> bool:
        """At once, unless the test says otherwise."""
        self.released.append(uuid)
        return not self.busy
