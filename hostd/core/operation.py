"""A long action that an operator can watch: begun, going on, ended well, badly or by request.

Invariant: an operation that has ended never changes again. Operations are values; whoever runs the
action keeps them and writes them down (core/pool.py for switches between the pools).
"""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

MOST_ENDED = 100  # that are kept to be looked at


class OperationState(enum.Enum):
    """RUNNING, then one of the others."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Operation:
    """One of them; also the content of its record."""

    id: int
    kind: str  # "gpu-pool"
    target: str  # what it is about: a GPU's UUID
    goal: str  # what is wanted of it: "native", "pooled"
    state: OperationState
    progress: str  # what it does or waits for now, or how it ended, in words for people
    percent: int  # 0 to 100
    started: str  # UTC, ISO 8601
    error: str = ""  # why it failed, or what it tries again after
    ended: str = ""  # empty: not yet

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.state is OperationState.RUNNING

    def went_on(self, progress: str, percent: int, error: str = "") -> Operation:
        """Its next line of progress. One that has ended stays as it is."""
        if not self.running:
            return self
        return replace(self, progress=progress, percent=percent, error=error)

    def succeeded(self, progress: str, now: str) -> Operation:
        """Ended well."""
        return self._ended(OperationState.SUCCEEDED, progress, 100, "", now)

    def failed(self, progress: str, error: str, now: str) -> Operation:
        """Ended badly; `error` says why and what to do."""
        return self._ended(OperationState.FAILED, progress, self.percent, error, now)

    def cancelled(self, progress: str, now: str) -> Operation:
        """Ended because somebody asked for it."""
        return self._ended(OperationState.CANCELLED, progress, self.percent, "", now)

    def _ended(
        self, state: OperationState, progress: str, percent: int, error: str, now: str
    ) -> Operation:
        if not self.running:
            return self
        return replace(
            self, state=state, progress=progress, percent=percent, error=error, ended=now
        )

    def as_dict(self) -> dict[str, Any]:
        """For the state file and the admin API."""
        return {**asdict(self), "state": self.state.value}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Operation:
        """Reads what as_dict wrote. Raises ValueError for anything else."""
        try:
            values = {field.name: content[field.name] for field in fields(cls)}
            values["state"] = OperationState(values["state"])
            for field in fields(cls):
                expected = {"int": int, "str": str}.get(str(field.type))
                if expected is not None and type(values[field.name]) is not expected:
                    raise ValueError(f"{field.name} is no {field.type}")
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an operation: {error!r}") from error
        return cls(**values)


def kept(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
    """By number; of those that have ended only the last ones."""
    ordered = sorted(operations, key=lambda one: one.id)
    ended = [one for one in ordered if not one.running]
    gone = {one.id for one in ended[:-MOST_ENDED]}
    return tuple(one for one in ordered if one.id not in gone)
