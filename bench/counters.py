"""What the guest runtime counted, read by the program itself while it runs (docs/profiling.md).

Under a driver that is not ours there are no counts: None.
"""

from __future__ import annotations

from typing import Any

from gpupool.guest import counters

Counts = dict[str, Any]


def snapshot() -> Counts | None:
    """The counts so far."""
    try:
        return counters.read()
    except OSError:  # no libcuda.so.1: workloads may be checked on the CPU
        return None


def difference(before: Counts | None, after: Counts | None) -> Counts | None:
    """What happened between two snapshots: numbers are subtracted, what is the same is left out."""
    if before is None or after is None:
        return None
    changed: Counts = {}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, dict):
            inner = difference(old if isinstance(old, dict) else {}, value)
            if inner:
                changed[name] = inner
        elif isinstance(value, int | float) and not isinstance(value, bool):
            number = value - (old if isinstance(old, int | float) else 0)
            if number:
                changed[name] = number
    return changed
