"""A Triton kernel; a module of its own because Triton reads its source from a file."""

from __future__ import annotations

import triton
import triton.language as tl


# Triton, which reads annotations as its own, allows none on the pointers.
@triton.jit
def scale_and_add(x, y, out, n, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """out = 2 x + y, a block of `size` numbers a program."""
    places = tl.program_id(0) * size + tl.arange(0, size)
    inside = places < n
    mine = tl.load(x + places, mask=inside)
    tl.store(out + places, 2 * mine + tl.load(y + places, mask=inside), mask=inside)
