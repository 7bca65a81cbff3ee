"""Records real sessions as seeds for the session targets.

    python -m pytest -p tests.fuzz.record tests/guest -k tcp

with GPUPOOL_FUZZ_RECORD naming a folder. Everything that a client sends over TCP passes a proxy
here, which writes one program (tests/fuzz/program.hpp) a session.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
from pathlib import Path

from gpupool.wire.hello import HELLO_BYTES
from tests import conftest

FRAME = struct.Struct("<IIQQ")  # wire/cpp/stream_frame.hpp
SLOT = struct.Struct("<QHHIIIQQQ")  # wire/cpp/layout.hpp, without the payload
SLOT_BYTES = 256
SLOTS, DATA = 1, 2
MAX_STEPS = 64  # tests/fuzz/program.hpp
MAX_STEP_DATA = 8192
TOP = 0x7FFF_FFFF


def program_of(stream: bytes) -> bytes:
    """The program of a recorded stream, as far as a program may go. Data is cut short."""
    out = bytearray(b"\0")
    at = HELLO_BYTES
    steps = 0
    while at + FRAME.size <= len(stream) and steps < MAX_STEPS:
        kind, count, offset, size = FRAME.unpack_from(stream, at)
        at += FRAME.size
        if kind == DATA:
            data = stream[at : at + size][:MAX_STEP_DATA]
            at += size
            out += struct.pack("<BIH", 0, min(offset, TOP), len(data)) + data
            steps += 1
        elif kind == SLOTS:
            for _ in range(count):
                if steps < MAX_STEPS and at + SLOT_BYTES <= len(stream):
                    out += message_of(stream[at : at + SLOT_BYTES])
                    steps += 1
                at += SLOT_BYTES
    return bytes(out)


def message_of(slot: bytes) -> bytes:
    """One slot as a step."""
    _, function, flags, thread, context, inline, stream, offset, size = SLOT.unpack_from(slot)
    head = struct.pack(
        "<BHHHHQIIH",
        1,
        function,
        flags,
        thread & 0x7FFF,
        context & 0x7FFF,
        stream,
        min(offset, TOP),
        min(size, TOP),
        inline,
    )
    return head + slot[SLOT.size : SLOT.size + inline]


def relay(source: socket.socket, target: socket.socket, kept: bytearray | None) -> None:
    """Carries bytes until either end closes."""
    try:
        while part := source.recv(1 << 16):
            if kept is not None:
                kept += part
            target.sendall(part)
    except OSError:
        pass  # the other end has gone: so does this one
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue  # closed already


def serve(client: socket.socket, port: int, folder: Path) -> None:
    """One recorded session."""
    with client, socket.create_connection(("127.0.0.1", port)) as host:
        kept = bytearray()
        back = threading.Thread(target=relay, args=(host, client, None))
        back.start()
        relay(client, host, kept)
        back.join()
    program = program_of(bytes(kept))
    (folder / hashlib.sha1(program, usedforsecurity=False).hexdigest()).write_bytes(program)


def proxy(port: int, folder: Path) -> int:
    """Starts a proxy to hostd's port; its own port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=serve, args=(client, port, folder), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    own: int = listener.getsockname()[1]
    return own


def pytest_configure() -> None:
    """Sends every client of a TCP endpoint through a proxy."""
    folder = Path(os.environ["GPUPOOL_FUZZ_RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    ports: dict[int, int] = {}
    direct = conftest.Host.client_environment

    def through_proxy(self: conftest.Host, transport: str) -> dict[str, str]:
        variables = direct(self, transport)
        if transport == "tcp":
            if self.port not in ports:
                ports[self.port] = proxy(self.port, folder)
            variables["GPUPOOL_ENDPOINT"] = f"tcp://127.0.0.1:{ports[self.port]}"
            variables["GPUPOOL_TCP_CONNECTIONS"] = "1"
        return variables

    # A method is replaced on purpose: this process only records, and every test's programs go
    # through the proxy.
    conftest.Host.client_environment = through_proxy  # type: ignore[method-assign]
