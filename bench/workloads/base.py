"""What a workload is: built once in a process, then timed as often as the runner asks.

A workload's functions import their frameworks only when they run; the runner reads the tables of
these modules in a Python that may have none of them. Standard library only, Python 3.10.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

# Classes of rows, which targets (bench/targets.py) and geometric means are made by.
LAUNCH = "launch-bound"
QUERY = "query-bound"
ITEM = "round trip"  # waits for the GPU and reads one number
SMALL_COPY = "small copy"
PAGEABLE = "pageable copy"
PINNED = "pinned copy"
MEMORY = "allocator"
MODULE = "module loading"
GPU = "GPU-bound"
MODEL = "model"
CLIENTS = "several clients"
START = "start of a program"
CLASSES = (
    *(LAUNCH, QUERY, ITEM, SMALL_COPY, PAGEABLE, PINNED),
    *(MEMORY, MODULE, GPU, MODEL, CLIENTS, START),
)

# Larger buffers are looked at at both ends and at one byte of every page, at changing places.
_STRIDE = 4099
_WHOLE_BYTES = 16 << 20


class UnavailableError(Exception):
    """This workload cannot run here. The text names what is missing."""


class WrongResultError(Exception):
    """The work was not done as it should be."""


@dataclass(frozen=True)
class Result:
    """What is compared with native: an exact digest, or numbers with a tolerance."""

    digest: str = ""
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Setting:
    """How workloads are to be built."""

    small: bool = False  # sizes for the software GPU
    torch_device: str = "cuda"  # "cpu": a check of the workloads' own code, without any GPU


@dataclass
class Running:
    """A workload that was built. `step` issues work, `wait` returns when all of it is done."""

    step: Callable[[], object]
    wait: Callable[[], object]
    result: Callable[[], Result]
    close: Callable[[], object] = lambda: None
    operations: int = 1  # in a step; times are told for one
    bytes_moved: int = 0  # by one operation
    more_cpu_s: Callable[[], float] = lambda: 0.0  # of processes that it has started, so far


@dataclass(frozen=True)
class Workload:
    """A row of the table."""

    name: str
    row_class: str
    make: Callable[[Setting], Running]
    tolerance: float = 0.0  # of values: greatest difference, relative to the greatest value
    needs: str = ""  # framework: "", "torch", "jax", "cupy"
    duration_factor: float = 1.0  # of a round, for what takes long
    modes: tuple[str, ...] = ()  # only in these; empty: in all
    # Native builds it before the others: what is compiled goes into a cache that all of them read.
    native_first: bool = False


def digest(data: bytes | bytearray | ctypes.Array[ctypes.c_char]) -> Result:
    """An exact result. Of more than 16 MiB: both ends and a byte of every page."""
    view = memoryview(data).cast("B")
    summed = hashlib.sha256(str(len(view)).encode())
    if len(view) <= _WHOLE_BYTES:
        summed.update(view)
    else:
        summed.update(view[: _WHOLE_BYTES // 2])
        summed.update(view[-_WHOLE_BYTES // 2 :])
        summed.update(view[::_STRIDE].tobytes())
    return Result(digest=summed.hexdigest())


def difference(native: Result, other: Result, tolerance: float) -> str:
    """Why the results are not the same; empty when they are."""
    if native.digest != other.digest:
        return f"digest {other.digest[:12] or 'none'}, native has {native.digest[:12] or 'none'}"
    if len(native.values) != len(other.values):
        return f"{len(other.values)} values, native has {len(native.values)}"
    scale = max((abs(each) for each in native.values), default=0.0)
    pairs = zip(native.values, other.values, strict=True)
    # Written so that a NaN is a difference.
    wrong = [(a, b) for a, b in pairs if not abs(a - b) <= tolerance * scale]
    if wrong:
        return (
            f"{len(wrong)} of {len(native.values)} values differ by more than {tolerance:g} of "
            f"{scale:g}: {wrong[0][1]:g}, native has {wrong[0][0]:g}"
        )
    return ""
