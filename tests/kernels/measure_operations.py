"""Runs the kernels of operations.py on an NVIDIA GPU and writes what they compute.

Usage: measure_operations.py OPERATIONS.PTX OUT. The file operations.out in this folder was measured
on an H100 80GB HBM3 with driver 580.159.04.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

HERE = Path(__file__).parent
VALUES = 128
WORD = 8
OPERANDS = 3
WORDS = "u8 s8 b16 u16 s16 f16 bf16 b32 u32 s32 f32 f16x2 bf16x2 sh b64 u64 s64 f64"
KINDS = WORDS.split()
RESULT_BYTES = {
    "b64": 8,
    "u64": 8,
    "s64": 8,
    "f64": 8,
    "u8": 2,
    "s8": 2,
    "b16": 2,
    "u16": 2,
    "s16": 2,
    "f16": 2,
    "bf16": 2,
}


def main() -> None:
    """Loads, launches, writes."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        result = getattr(cuda, name)(*arguments)
        if result != 0:
            raise RuntimeError(f"{name}: {result}")

    ptx, out = Path(sys.argv[1]), Path(sys.argv[2])
    device, context, module = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuModuleLoadData", ctypes.byref(module), ptx.read_bytes() + b"\0")
    data = (HERE / "operations.in").read_bytes()
    memory = ctypes.c_uint64()
    result = ctypes.c_uint64()
    call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(len(data)))
    call("cuMemAlloc_v2", ctypes.byref(result), ctypes.c_size_t(VALUES * WORD))
    call("cuMemcpyHtoD_v2", memory, data, ctypes.c_size_t(len(data)))
    measured = bytearray()
    for number, row in enumerate((HERE / "operations.txt").read_text().splitlines()):
        types = row.split()[1].split(",")
        function = ctypes.c_void_p()
        call("cuModuleGetFunction", ctypes.byref(function), module, f"op_{number}".encode())
        pointers = [ctypes.c_uint64(result.value)]
        for operand in range(OPERANDS):
            kind = KINDS.index(types[operand + 1]) if operand + 1 < len(types) else 0
            offset = (kind * OPERANDS + operand) * VALUES * WORD
            pointers.append(ctypes.c_uint64(memory.value + offset))
        parameters = (ctypes.c_void_p * 4)(*[ctypes.addressof(p) for p in pointers])
        call("cuMemsetD8_v2", result, 0, ctypes.c_size_t(VALUES * WORD))
        call("cuLaunchKernel", function, 1, 1, 1, VALUES, 1, 1, 0, None, parameters, None)
        call("cuCtxSynchronize")
        buffer = ctypes.create_string_buffer(VALUES * WORD)
        call("cuMemcpyDtoH_v2", buffer, result, ctypes.c_size_t(VALUES * WORD))
        size = RESULT_BYTES.get(types[0], 4)
        for value in range(VALUES):
            measured += buffer.raw[value * WORD : value * WORD + size]
    out.write_bytes(measured)


if __name__ == "__main__":
    main()
