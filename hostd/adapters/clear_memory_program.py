"""Writes zeros over all free memory of one GPU: `LIBRARY UUID`. Prints JSON.

Runs as a file in a process of its own (`card_memory`), with the standard library only.
"""

from __future__ import annotations

import ctypes
import json
import sys

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY, cuda.h
_SMALLEST_BYTES = 2 << 20  # what the driver takes memory in


def _call(cuda: ctypes.CDLL, name: str, *arguments: object) -> None:
    result: int = getattr(cuda, name)(*arguments)
    if result != 0:
        raise OSError(f"{name} returned {result}")


def clear(path: str, uuid: str) -> dict[str, int]:
    """Clears it. Raises OSError, AttributeError for a missing symbol."""
    cuda = ctypes.CDLL(path)
    _call(cuda, "cuInit", 0)
    count = ctypes.c_int()
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    for device in range(count.value):
        raw = (ctypes.c_ubyte * 16)()
        _call(cuda, "cuDeviceGetUuid_v2", raw, device)
        if bytes(raw).hex() == uuid.removeprefix("GPU-").replace("-", ""):
            break
    else:
        raise OSError(f"{path} does not show GPU {uuid}")
    context = ctypes.c_void_p()
    _call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _call(cuda, "cuCtxSetCurrent", context)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call(cuda, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    cleared, size = 0, free.value
    while size >= _SMALLEST_BYTES:
        address = ctypes.c_uint64()
        result: int = cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size))
        if result == _OUT_OF_MEMORY:
            size //= 2
            continue
        if result != 0:
            raise OSError(f"cuMemAlloc returned {result}")
        _call(cuda, "cuMemsetD8_v2", address, ctypes.c_ubyte(0), ctypes.c_size_t(size))
        cleared += size
    _call(cuda, "cuCtxSynchronize")
    return {"total_bytes": total.value, "free_bytes": free.value, "cleared_bytes": cleared}


if __name__ == "__main__":
    try:
        print(json.dumps(clear(sys.argv[1], sys.argv[2])))
    except (OSError, AttributeError) as error:
        sys.exit(str(error))
