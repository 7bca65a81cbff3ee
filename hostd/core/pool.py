"""Which pool a GPU is in, and the states between the two.

    pooled -> draining -> to_native -> native -> to_pooled -> pooled

Pooled: hostd slices the GPU into vGPUs. Native: nothing of ours holds the card, and it is given out
whole, to containers (`container`: a CDI device) or to a virtual machine (`vfio`: bound to
vfio-pci). Values only; core/pools.py moves them.
"""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from gpupool.hostd.core.gpu import Gpu
from gpupool.hostd.core.operation import Operation, kept

VERSION = 1  # of the state file


class PoolState(enum.Enum):
    """Where a GPU is. Sessions may begin on it in POOLED only."""

    POOLED = "pooled"
    DRAINING = "draining"  # its sessions go on, new ones do not come
    TO_NATIVE = "to_native"
    NATIVE = "native"
    TO_POOLED = "to_pooled"


class NativeKind(enum.Enum):
    """For whom a native GPU is."""

    CONTAINER = "container"
    VFIO = "vfio"


class Step(enum.Enum):
    """What is done on the way, in the order of the two plans below.

    Each may be done twice, as after a crash: what is done already is left as it is.
    """

    RELEASE = "release"  # waiting workers and the arbiter of that GPU end
    CLEAR = "clear"  # what tenants have left in its memory is written over
    SURVEY = "survey"  # the card's functions are looked at and written down
    CLAIM = "claim"  # they are bound to vfio-pci, unless somebody holds the card
    PUBLISH = "publish"  # the CDI device appears
    CHECK = "check"  # nobody may use the native card
    WITHDRAW = "withdraw"  # the CDI device disappears
    RESTORE = "restore"  # the functions are bound to the drivers that they had
    FIND = "find"  # the driver shows the card again


_TO_NATIVE = {
    NativeKind.CONTAINER: (Step.RELEASE, Step.CLEAR, Step.PUBLISH),
    NativeKind.VFIO: (Step.RELEASE, Step.CLEAR, Step.SURVEY, Step.CLAIM, Step.PUBLISH),
}
_TO_POOLED = {
    NativeKind.CONTAINER: (Step.CHECK, Step.WITHDRAW, Step.FIND),
    NativeKind.VFIO: (Step.CHECK, Step.WITHDRAW, Step.RESTORE, Step.FIND),
}

_NEXT = {
    PoolState.POOLED: {PoolState.DRAINING},
    PoolState.DRAINING: {PoolState.POOLED, PoolState.TO_NATIVE},
    # Back, when a step fails.
    PoolState.TO_NATIVE: {PoolState.NATIVE, PoolState.TO_POOLED},
    # TO_NATIVE: after a reboot with a state folder that survived it, everything is done again.
    PoolState.NATIVE: {PoolState.TO_POOLED, PoolState.TO_NATIVE},
    # NATIVE: somebody used it, and nothing was touched. TO_NATIVE: asked for where it got stuck.
    PoolState.TO_POOLED: {PoolState.POOLED, PoolState.NATIVE, PoolState.TO_NATIVE},
}


class IllegalMoveError(RuntimeError):
    """A programming error of hostd: a GPU was moved where it cannot go."""


@dataclass(frozen=True, slots=True)
class PciFunction:
    """One function of a card, and what it was bound to before we touched it."""

    address: str  # "0000:1b:00.0"
    driver: str  # "nvidia"; empty: none
    override: str = ""  # its driver_override; empty: none


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """What hostd remembers of a GPU; also the content of its record."""

    uuid: str
    name: str
    memory_mib: int
    source: str  # "nvidia" or "software"
    pci_address: str  # as sysfs writes it: "0000:1b:00.0"
    state: PoolState = PoolState.POOLED
    kind: NativeKind = NativeKind.CONTAINER  # where it is or goes; nothing while POOLED
    operation: int = 0  # the number of the last one
    force: bool = False
    deadline_s: int = -1  # after which sessions are ended; -1: never
    deadline_at_s: float = 0.0  # on the monotonic clock
    step: Step | None = None  # being done, in TO_NATIVE and TO_POOLED
    functions: tuple[PciFunction, ...] = field(default=())  # as they were, from SURVEY to RESTORE
    failure: str = ""  # why it is on its way back from TO_NATIVE

    @property
    def moving(self) -> bool:
        """Whether something is left to do."""
        return self.state not in (PoolState.POOLED, PoolState.NATIVE)

    def moved(self, state: PoolState, **changes: Any) -> PoolRecord:
        """This GPU in `state`, at its first step. Raises IllegalMoveError."""
        if state not in _NEXT[self.state]:
            raise IllegalMoveError(f"{self.uuid}: {self.state.value} -> {state.value}")
        fresh = replace(self, state=state, step=None, **changes)
        return replace(fresh, step=fresh.plan[0] if fresh.plan else None)

    @property
    def plan(self) -> tuple[Step, ...]:
        """The steps of its state."""
        if self.state is PoolState.TO_NATIVE:
            return _TO_NATIVE[self.kind]
        if self.state is PoolState.TO_POOLED:
            steps = _TO_POOLED[self.kind]
            # Nobody can use what never became native.
            return steps[1:] if self.failure else steps
        return ()

    @property
    def next_step(self) -> Step | None:
        """The one after `step`; None: `step` is the last."""
        if self.step is None:
            return None
        rest = self.plan[self.plan.index(self.step) + 1 :]
        return rest[0] if rest else None

    @property
    def percent(self) -> int:
        """How far it is: draining is the first half of the way to native."""
        if self.step is None:
            return 0
        share = self.plan.index(self.step) / len(self.plan)
        return round(50 + 50 * share if self.state is PoolState.TO_NATIVE else 100 * share)

    def as_dict(self) -> dict[str, Any]:
        """For the state file."""
        return {
            **asdict(self),
            "state": self.state.value,
            "kind": self.kind.value,
            "step": self.step.value if self.step else "",
            "functions": [asdict(one) for one in self.functions],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> PoolRecord:
        """Reads what as_dict wrote. Raises ValueError for anything else."""
        try:
            values = {one.name: content[one.name] for one in fields(cls)}
            for one in fields(cls):
                expected = {"int": int, "str": str, "bool": bool, "float": float}.get(str(one.type))
                if expected is not None and type(values[one.name]) is not expected:
                    raise ValueError(f"{one.name} is no {one.type}")
            values["state"] = PoolState(values["state"])
            values["kind"] = NativeKind(values["kind"])
            values["step"] = Step(values["step"]) if values["step"] else None
            values["functions"] = tuple(
                PciFunction(str(one["address"]), str(one["driver"]), str(one["override"]))
                for one in values["functions"]
            )
            record = cls(**values)
            if (record.step is None) != (not record.plan) or (
                record.step is not None and record.step not in record.plan
            ):
                raise ValueError(f"{record.state.value} has no step {content['step']!r}")
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a GPU's record: {error!r}") from error
        return record


@dataclass(frozen=True, slots=True)
class PoolFile:
    """Everything that is written down, at once: the GPUs and the operations on them."""

    gpus: tuple[PoolRecord, ...] = ()
    operations: tuple[Operation, ...] = ()
    last_operation: int = 0

    def gpu(self, uuid: str) -> PoolRecord | None:
        """By UUID."""
        return next((one for one in self.gpus if one.uuid == uuid), None)

    def operation(self, number: int) -> Operation | None:
        """By number."""
        return next((one for one in self.operations if one.id == number), None)

    def holding(
        self, gpus: tuple[PoolRecord, ...] = (), operations: tuple[Operation, ...] = ()
    ) -> PoolFile:
        """With these added, or in the place of those of the same name."""
        records = {one.uuid: one for one in (*self.gpus, *gpus)}
        known = {one.id: one for one in (*self.operations, *operations)}
        last = max([self.last_operation, *known])
        return PoolFile(tuple(records.values()), kept(tuple(known.values())), last)

    def as_dict(self) -> dict[str, Any]:
        """For the state file."""
        return {
            "version": VERSION,
            "gpus": [one.as_dict() for one in self.gpus],
            "operations": [one.as_dict() for one in self.operations],
            "last_operation": self.last_operation,
        }

    @classmethod
    def from_dict(cls, content: Any) -> PoolFile:
        """Reads what as_dict wrote. Raises ValueError for anything else."""
        if not isinstance(content, dict) or "version" not in content:
            raise ValueError("it has no version")
        if content["version"] != VERSION:
            raise ValueError(f"it has version {content['version']!r}, this gpupool reads {VERSION}")
        try:
            gpus = tuple(PoolRecord.from_dict(one) for one in content["gpus"])
            operations = tuple(Operation.from_dict(one) for one in content["operations"])
            return cls(gpus, operations, int(content["last_operation"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a file of pools: {error!r}") from error


def sysfs_address(pci_bus_id: str) -> str:
    """NVML's "00000000:1B:00.0" as sysfs writes it, "0000:1b:00.0"; also the latter itself."""
    domain, colon, rest = pci_bus_id.strip().lower().partition(":")
    return f"{domain[-4:].rjust(4, '0')}:{rest}" if colon else ""


def registered(gpu: Gpu) -> PoolRecord:
    """A GPU that was not known so far."""
    address = sysfs_address(gpu.pci_bus_id)
    return PoolRecord(gpu.uuid, gpu.name, gpu.memory_mib, gpu.source, address)
