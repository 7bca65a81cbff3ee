"""Waking those who wait on a word that processes share (futex(2))."""

from __future__ import annotations

import ctypes
import platform

_NUMBERS = {"x86_64": 202, "aarch64": 98}  # asm/unistd_64.h, asm-generic/unistd.h
_FUTEX_WAKE = 1  # without FUTEX_PRIVATE_FLAG: they are other processes
_EVERYBODY = 0x7FFFFFFF
_libc = ctypes.CDLL(None, use_errno=True)


def wake(address: int) -> None:
    """Wakes everybody who waits there."""
    _libc.syscall(
        ctypes.c_long(_NUMBERS[platform.machine()]),
        ctypes.c_void_p(address),
        ctypes.c_int(_FUTEX_WAKE),
        ctypes.c_int(_EVERYBODY),
        None,
        None,
        ctypes.c_int(0),
    )
