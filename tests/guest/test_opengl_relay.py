"""gpupool-opengl, with the test as the host at one end and as the program at the other."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpupool.wire.hello import HELLO_BYTES, Hello, SessionKind, Welcome, WelcomeStatus
from tests.conftest import native_dir

MIB = 1 << 20
TIMEOUT_S = 30


def exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes."""
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), MIB))
        assert piece, f"ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


@dataclass
class Relay:
    """A running one, and where it dials."""

    process: subprocess.Popen[str]
    path: Path
    host: socket.socket

    def program(self) -> socket.socket:
        """A connection as Mesa makes one."""
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(TIMEOUT_S)
        one.connect(str(self.path))
        return one

    def greet(self, answer: Welcome) -> tuple[socket.socket, Hello]:
        """Takes its connection and welcomes it, or does not."""
        connection, _ = self.host.accept()
        connection.settimeout(TIMEOUT_S)
        hello = Hello.decode(exactly(connection, HELLO_BYTES))
        connection.sendall(answer.encode())
        return connection, hello

    def both(self) -> tuple[socket.socket, socket.socket]:
        """A program and its host."""
        program = self.program()
        return program, self.greet(Welcome())[0]

    def said(self) -> str:
        """What it has written to its standard error; it ends."""
        self.process.terminate()
        return self.process.communicate(timeout=TIMEOUT_S)[1]


@pytest.fixture
def relay() -> Iterator[Relay]:
    program = native_dir() / "lib" / "guest" / "gpupool-opengl"
    with (
        tempfile.TemporaryDirectory(prefix="gpupool-gl-") as folder,
        socket.create_server(("127.0.0.1", 0)) as host,
    ):
        host.settimeout(TIMEOUT_S)
        path = Path(folder) / "socket"
        endpoint = f"tcp://127.0.0.1:{host.getsockname()[1]}"
        process = subprocess.Popen(
            [program, "serve", "--socket", str(path), "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "GPUPOOL_ENDPOINT": endpoint, "GPUPOOL_VGPU": "mine"},
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield Relay(process, path, host)
        finally:
            process.kill()
            process.communicate(timeout=TIMEOUT_S)


def test_it_says_whose_connection_it_is(relay: Relay) -> None:
    with relay.program():
        connection, hello = relay.greet(Welcome())
        connection.close()
    assert hello.kind == SessionKind.OPENGL
    assert (hello.pid, hello.lanes, hello.vgpu) == (os.getpid(), 0, "mine")
    assert hello.program == Path("/proc/self/comm").read_text().strip()


def test_bytes_go_both_ways_and_ends_one_by_one(relay: Relay) -> None:
    program, host = relay.both()
    data = os.urandom(3 * MIB)
    sender = threading.Thread(target=program.sendall, args=(data,))
    sender.start()
    assert exactly(host, len(data)) == data
    sender.join()
    program.shutdown(socket.SHUT_WR)
    assert host.recv(1) == b""
    host.sendall(b"and yet an answer")  # the other direction goes on
    host.close()
    assert exactly(program, 17) == b"and yet an answer"
    assert program.recv(1) == b""
    program.close()


@pytest.mark.parametrize("from_program", [True, False])
def test_who_does_not_read_makes_the_other_wait(relay: Relay, from_program: bool) -> None:
    program, host = relay.both()
    source, sink = (program, host) if from_program else (host, program)
    source.settimeout(1)
    sent = 0
    piece = bytes(MIB)
    with contextlib.suppress(TimeoutError):
        while sent < 512 * MIB:
            sent += source.send(piece)
    assert sent < 64 * MIB  # what the kernel keeps, and a quarter MiB
    (child,) = (
        Path(f"/proc/{relay.process.pid}/task/{relay.process.pid}/children").read_text().split()
    )
    status = Path(f"/proc/{child}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    assert int(resident.split()[1]) < 32 * 1024
    source.close()
    got = 0
    while piece := sink.recv(MIB):
        got += len(piece)
    assert got == sent
    sink.close()


def test_a_refusal_is_told(relay: Relay) -> None:
    program = relay.program()
    relay.greet(Welcome(status=WelcomeStatus.LIMIT, text="no room for OpenGL today"))
    assert program.recv(1) == b""
    assert "no room for OpenGL today" in relay.said()


def test_a_host_that_goes_is_told(relay: Relay) -> None:
    program, host = relay.both()
    host.close()
    assert program.recv(1) == b""
    program.close()
    assert "the host has ended the session" in relay.said()


def test_no_answer_at_all_is_told(relay: Relay) -> None:
    program = relay.program()
    relay.host.accept()[0].close()
    assert program.recv(1) == b""
    assert "closed the connection before it answered" in relay.said()


def test_it_ends_with_its_parent_and_leaves_no_socket() -> None:
    program = native_dir() / "lib" / "guest" / "gpupool-opengl"
    with tempfile.TemporaryDirectory(prefix="gpupool-gl-") as folder:
        path = Path(folder) / "socket"
        parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        words = [str(program), "serve", "--socket", str(path), "--parent", str(parent.pid)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as relay:
            assert relay.stdout is not None
            assert relay.stdout.readline() == "ready\n"
            parent.kill()
            parent.wait(timeout=TIMEOUT_S)
            assert relay.wait(timeout=TIMEOUT_S) == 0
        assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_another_user_is_not_served(relay: Relay) -> None:
    relay.path.parent.chmod(0o711)
    relay.path.chmod(0o666)
    text = f"import socket; s = socket.socket(1); s.connect({str(relay.path)!r}); print(s.recv(1))"
    words = [sys.executable, "-c", text]
    done = subprocess.run(
        ["/usr/bin/python3", *words[1:]], capture_output=True, text=True, timeout=60, user=12345
    )
    assert done.stdout == "b''\n"
    relay.host.settimeout(0.5)
    with pytest.raises(TimeoutError):
        relay.host.accept()
