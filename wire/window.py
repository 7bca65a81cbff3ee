"""How large the window of a virtual machine may be: one rule for whoever asks and for hostd."""

from __future__ import annotations

from gpupool.wire.hello import WINDOW_MIN_BYTES

MIN_WINDOW_MIB = WINDOW_MIN_BYTES >> 20


def check_window(window_mib: int) -> str:
    """What is wrong with that size; empty when nothing is. 0: there is none. QEMU takes powers of
    two for ivshmem (qemu: docs/specs/ivshmem-spec.rst).
    """
    if window_mib and (window_mib < 0 or window_mib & (window_mib - 1)):
        return f"a window of {window_mib} MiB was asked for; QEMU takes powers of two"
    if 0 < window_mib < MIN_WINDOW_MIB:
        return (
            f"a window of {window_mib} MiB was asked for, which holds no session: one needs "
            f"{MIN_WINDOW_MIB} MiB; ask for that or more, or for none "
            "(gpupool vm attach --no-window)"
        )
    return ""
