"""What this program's calls have cost so far: messages sent, and calls that had to wait.

For a Python program that runs on a vGPU and measures itself. Standard library only, so that a
program in any environment can load this one file. The twin of guest/runtime/statistics.cpp.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any

_TABLE = bytes.fromhex("2a3beb86f5ef72e49fba5e86824307df")  # our table of cuGetExportTable


def read() -> dict[str, Any] | None:
    """The counters of this process, or None where the driver is NVIDIA's own or not initialised.

    {"transport": str, "device": str, "messages": int, "waits": {function: count}}, since cuInit:
    take two and subtract. Costs the call some microseconds, sends nothing. Raises OSError where
    there is no libcuda.so.1.
    """
    table = ctypes.POINTER(ctypes.c_void_p)()
    driver = ctypes.CDLL("libcuda.so.1")
    if driver.cuGetExportTable(ctypes.byref(table), _TABLE) != 0:
        return None
    snapshot = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)(table[1] or 0)
    capacity = 1 << 16  # grows while the text does, which is bounded by the number of functions
    while True:
        text = ctypes.create_string_buffer(capacity)
        size = snapshot(text, capacity)
        if size < capacity:
            break
        capacity = size + 4096
    if size == 0:
        return None
    counters: dict[str, Any] = json.loads(text.value)
    return counters
