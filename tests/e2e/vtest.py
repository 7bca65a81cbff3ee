"""A client of gpupool-renderer that can say anything: Hello, then vtest's commands by hand
(hostd/renderer/vtest.hpp).
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import socket
import struct
from typing import Any

from gpupool.wire.hello import (
    WELCOME_BYTES,
    Hello,
    SessionKind,
    TransportKind,
    Welcome,
    WelcomeStatus,
)
from tests.conftest import Host

GET_CAPS, CREATE, UNREF, GET, PUT, SUBMIT, BUSY_WAIT = range(1, 8)
CREATE_RENDERER, GET_CAPS2, PING, VERSION, CREATE2, GET2, PUT2 = range(8, 15)
BUFFER, TWO = 0, 2  # targets
R8, RGBA8 = 64, 67  # formats
SAMPLED, VERTICES = 1 << 3, 1 << 4  # what it is for


def receive(connection: socket.socket, size: int) -> bytes:
    """So many bytes. Raises EOFError when the other end has gone."""
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError(f"after {len(data)} of {size} bytes")
        data += piece
    return bytes(data)


class Client:
    """One session; its connection ends with the `with` block."""

    def __init__(self, host: Host, transport: str = "shm", context: bool = True, **hello: Any):
        """Dials and is welcomed. `hello`: fields of the Hello."""
        self.shared = transport == "shm"
        asked = Hello(
            window_base=0x2000_0000_0000,
            transport=TransportKind.SHM if self.shared else TransportKind.TCP,
            kind=SessionKind.OPENGL,
            pid=os.getpid(),
            program="by-hand",
            client_version="0.1.0",
            token=b"" if self.shared else (host.folder / "token").read_bytes().strip(),
            **hello,
        )
        if self.shared:
            self.control = socket.socket(socket.AF_UNIX)
        else:
            self.control = socket.socket(socket.AF_INET)
        self.control.settimeout(60)
        where = str(host.folder / "hostd.sock") if self.shared else ("127.0.0.1", host.port)
        self.control.connect(where)
        self.control.sendall(asked.encode())
        self.welcome = Welcome.decode(receive(self.control, WELCOME_BYTES))
        self.stream = self.control
        if self.welcome.status is WelcomeStatus.OK:
            if self.shared:
                self._hand_over()
            if context:
                self.begin()

    def _hand_over(self) -> None:
        self.stream, theirs = socket.socketpair()
        self.stream.settimeout(60)
        rights = array.array("i", [theirs.fileno()])
        self.control.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        theirs.close()

    def begin(self) -> None:
        """Makes the context; a client with shared memory agrees on version 2."""
        self.raw(struct.pack("<II", 5, CREATE_RENDERER) + b"test\0")
        if self.shared:
            self.say(PING)
            assert self.answer(PING) == b""
            self.say(VERSION, 4)
            assert self.answer(VERSION) == struct.pack("<I", 2)

    def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self.stream.sendall(data)

    def say(self, command: int, *words: int, length: int | None = None) -> None:
        """A command; `length` is a lie about how many words follow."""
        size = len(words) if length is None else length
        self.raw(struct.pack(f"<{2 + len(words)}I", size, command, *words))

    def answer(self, command: int) -> bytes:
        """The payload of the answer to it."""
        words, of = struct.unpack("<II", receive(self.stream, 8))
        assert of == command
        return receive(self.stream, 4 * words)

    def descriptor(self) -> int:
        """What came beside one byte; -1 for none."""
        _, ancillary, _, _ = self.stream.recvmsg(1, socket.CMSG_SPACE(4))
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                return int(struct.unpack("i", data[:4])[0])
        return -1

    def make(self, handle: int, width: int, height: int = 1, **more: int) -> mmap.mmap | None:
        """A texture of RGBA8, or what `more` says; its shared memory, where it got any."""
        target, form = more.get("target", TWO), more.get("format", RGBA8)
        levels, samples = more.get("last_level", 0), more.get("samples", 0)
        depth, layers = more.get("depth", 1), more.get("layers", 1)
        words = [handle, target, form, more.get("bind", SAMPLED), width, height]
        words += [depth, layers, levels, samples]
        if not self.shared:
            self.say(CREATE, *words)
            return None
        size = more.get("bytes", width * height * 4)
        self.say(CREATE2, *words, size)
        fd = self.descriptor() if size else -1
        if fd < 0:
            return None
        memory = mmap.mmap(fd, size)
        os.close(fd)
        return memory

    def wait(self) -> None:
        """Until everything so far is done."""
        self.say(BUSY_WAIT, 1, 1)
        assert self.answer(BUSY_WAIT) == bytes(4)

    def ended(self) -> bool:
        """Whether the session has ended, at the latest after a minute."""
        with contextlib.suppress(ConnectionError, EOFError):
            while self.stream.recv(4096):
                pass
            return True
        return True

    def notice(self) -> str:
        """Why, as the program's user reads it; over shared memory."""
        return self.control.recv(500).decode()

    def close(self) -> None:
        """The program ends."""
        self.stream.close()
        self.control.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
