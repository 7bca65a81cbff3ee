"""PTX in the container that nvcc puts it in: code to register without a compiler.

The layout is what nvcc leaves in object files: a wrapper that points to a header, then one
entry a target. Only uncompressed PTX entries are made here.
"""

from __future__ import annotations

import ctypes
import struct

FATBIN_MAGIC = 0xBA55ED50
WRAPPER_MAGIC = 0x466243B1
KIND_PTX = 1
PTX_VERSION = (0, 7)  # minor, major: 7.0
ENTRY_HEADER_BYTES = 80
OPTIONS_AT = 64  # where the header says where ptxas's options are: right behind, an empty string
FLAG_64_BIT_LINUX = 0x11


class Wrapper(ctypes.Structure):
    """What __cudaRegisterFatBinary is given."""

    _fields_ = (
        ("magic", ctypes.c_int32),
        ("version", ctypes.c_int32),
        ("data", ctypes.c_void_p),
        ("filename", ctypes.c_void_p),
    )


def fatbin(ptx: str, target: int) -> bytes:
    """A fatbin with one PTX entry for sm_`target`."""
    body = ptx.encode() + b"\0"
    body += b"\0" * (-len(body) % 8)
    entry = struct.pack(
        "<HHIQIIHHIIIQQQQQ",
        KIND_PTX, 0x101, ENTRY_HEADER_BYTES, len(body), 0, OPTIONS_AT, *PTX_VERSION, target, 0, 0,
        FLAG_64_BIT_LINUX, 0, 0, OPTIONS_AT + 8, 0,
    )  # fmt: skip
    assert len(entry) == ENTRY_HEADER_BYTES
    return struct.pack("<IHHQ", FATBIN_MAGIC, 1, 16, len(entry) + len(body)) + entry + body


def wrap(image: bytes) -> tuple[Wrapper, ctypes.Array[ctypes.c_char]]:
    """A wrapper around `image`, and the memory that must stay alive with it."""
    memory = ctypes.create_string_buffer(image, len(image))
    return Wrapper(WRAPPER_MAGIC, 1, ctypes.addressof(memory), None), memory
