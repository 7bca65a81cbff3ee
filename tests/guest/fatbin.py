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
FLAG_LZ4 = 0x2000


class Wrapper(ctypes.Structure):
    """What __cudaRegisterFatBinary is given."""

    _fields_ = (
        ("magic", ctypes.c_int32),
        ("version", ctypes.c_int32),
        ("data", ctypes.c_void_p),
        ("filename", ctypes.c_void_p),
    )


def lz4(data: bytes) -> bytes:
    """An LZ4 block of literals alone."""
    more = len(data) - 15
    assert more >= 0
    return bytes([0xF0]) + b"\xff" * (more // 255) + bytes([more % 255]) + data


def fatbin(ptx: str, target: int, compressed: bool = False) -> bytes:
    """A fatbin with one PTX entry for sm_`target`."""
    text = ptx.encode() + b"\0"
    body = lz4(text) if compressed else text
    sizes = (len(body), len(text)) if compressed else (0, 0)
    flags = FLAG_64_BIT_LINUX | (FLAG_LZ4 if compressed else 0)
    body += b"\0" * (-len(body) % 8)
    entry = struct.pack(
        "<HHIQIIHHIIIQQQQQ",
        KIND_PTX, 0x101, ENTRY_HEADER_BYTES, len(body), sizes[0], OPTIONS_AT, *PTX_VERSION,
        target, 0, 0, flags, 0, sizes[1], OPTIONS_AT + 8, 0,
    )  # fmt: skip
    assert len(entry) == ENTRY_HEADER_BYTES
    return struct.pack("<IHHQ", FATBIN_MAGIC, 1, 16, len(entry) + len(body)) + entry + body


def wrap(image: bytes) -> tuple[Wrapper, ctypes.Array[ctypes.c_char]]:
    """A wrapper around `image`, and the memory that must stay alive with it."""
    memory = ctypes.create_string_buffer(image, len(image))
    return Wrapper(WRAPPER_MAGIC, 1, ctypes.addressof(memory), None), memory
