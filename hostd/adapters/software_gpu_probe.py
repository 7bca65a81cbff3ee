"""Prints the devices of a libcuda as JSON: run as a program, `python software_gpu_probe.py
LIBRARY`.

Standard library only and no import of gpupool: it runs isolated (`python -I`). Exit code 1 with one
line on stderr when the library cannot be loaded or a call fails.
"""

from __future__ import annotations

import ctypes
import json
import sys


def _call(library: ctypes.CDLL, name: str, *arguments: object) -> None:
    result = getattr(library, name)(*arguments)
    if result != 0:
        raise OSError(f"{name} returned {result}")


def look(path: str) -> dict[str, object]:
    """What the driver API says of itself and of each device.

    Raises OSError, AttributeError for a missing symbol.
    """
    cuda = ctypes.CDLL(path)
    _call(cuda, "cuInit", 0)
    count = ctypes.c_int()
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    version = ctypes.c_int()
    _call(cuda, "cuDriverGetVersion", ctypes.byref(version))
    found: list[dict[str, object]] = []
    for device in range(count.value):
        name = ctypes.create_string_buffer(256)
        uuid = (ctypes.c_ubyte * 16)()
        total_bytes = ctypes.c_size_t()
        major, minor, multiprocessors = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        bus = ctypes.create_string_buffer(16)
        _call(cuda, "cuDeviceGetName", name, 256, device)
        _call(cuda, "cuDeviceGetUuid_v2", uuid, device)
        _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(total_bytes), device)
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, _MULTIPROCESSOR_COUNT; cuda.h
        _call(cuda, "cuDeviceGetAttribute", ctypes.byref(major), 75, device)
        _call(cuda, "cuDeviceGetAttribute", ctypes.byref(minor), 76, device)
        _call(cuda, "cuDeviceGetAttribute", ctypes.byref(multiprocessors), 16, device)
        _call(cuda, "cuDeviceGetPCIBusId", bus, 16, device)
        digits = bytes(uuid).hex()
        groups = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
        found.append(
            {
                "uuid": "GPU-" + "-".join(groups),
                "name": name.value.decode("utf-8", "replace"),
                "memory_mib": total_bytes.value >> 20,
                "compute_capability": f"{major.value}.{minor.value}",
                # CUDA writes four digits for the domain, NVML eight and capitals.
                "pci_bus_id": "0000" + bus.value.decode("ascii").upper(),
                "card": {
                    "memory_bytes": total_bytes.value,
                    "multiprocessors": multiprocessors.value,
                },
            }
        )
    return {"cuda_version": version.value, "devices": found}


if __name__ == "__main__":
    try:
        print(json.dumps(look(sys.argv[1])))
    except (OSError, AttributeError) as error:
        sys.exit(str(error))
