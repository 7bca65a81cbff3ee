"""Programs whose connections go through UCX: over its TCP and its shared memory, as far as this
machine goes. Nothing here has met an RDMA adapter.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, Host, native_dir

PROGRAM = """
import hashlib, os, sys
from tests.e2e.client import Counter
counter = Counter()
counter.add()
block = counter.driver.alloc(40 << 20)
for size in (16, 4096, 1 << 20, 40 << 20):
    data = os.urandom(size)
    counter.driver.upload(block, data)
    assert counter.driver.download(block, size) == data, size
print(counter.value(), flush=True)
if len(sys.argv) > 1:
    print(sys.stdin.readline(), end="", flush=True)
    from tests.guest.cuda import CudaError
    try:
        while True:
            counter.add()
            counter.value()
    except CudaError as error:
        print("error", error.code, flush=True)
"""
# What UCX may use, and the relay's option for it. Its shared memory cannot tell that a peer died.
WAYS = {"tcp": ("tcp", ()), "shm": ("sm,tcp", ("--any-transport",))}


def relay_program() -> Path:
    """The relay; skips where it is not built."""
    path = native_dir() / "libexec" / "gpupool-ucx"
    if not path.exists():
        pytest.skip("gpupool-ucx is not built: libucx-dev is missing")
    return path


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Each of UCX's transports in turn."""
    relay_program()
    name: str = request.param
    return name


@dataclass
class Relay:
    """One that runs, and where it listens."""

    process: subprocess.Popen[str]
    address: str

    @property
    def place(self) -> tuple[str, int]:
        """For a socket."""
        host, _, port = self.address.rpartition(":")
        return host, int(port)

    def memory_kib(self) -> int:
        """Resident."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0])

    def descriptors(self) -> int:
        """How many it has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextmanager
def relay(way: str, *words: str) -> Iterator[Relay]:
    """A relay that ends with the block."""
    transports, options = WAYS[way]
    process = subprocess.Popen(
        [str(relay_program()), "--parent", str(os.getpid()), *options, *words],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, UCX_TLS=transports),
    )
    assert process.stdout is not None
    try:
        word, address = process.stdout.readline().split()
        assert word == "ready"
        yield Relay(process, address)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def pair(way: str, target: str) -> Iterator[tuple[Relay, Relay]]:
    """The host's side in front of `target`, and the program's side."""
    with ExitStack() as stack:
        far = stack.enter_context(relay(way, "listen", "127.0.0.1:0", "to", target))
        near = stack.enter_context(relay(way, "dial", far.address, "on", "127.0.0.1:0"))
        yield far, near


def start_program(host: Host, near: Relay, *words: str) -> subprocess.Popen[str]:
    return host.start_client(
        "tcp",
        sys.executable,
        "-c",
        PROGRAM,
        *words,
        GPUPOOL_ENDPOINT=f"tcp://{near.address}",
    )


def test_a_program(host: Host, way: str) -> None:
    with pair(way, f"127.0.0.1:{host.port}") as (_, near):
        client = start_program(host, near)
        out, err = client.communicate(timeout=120)
        assert (client.returncode, out) == (0, "1\n"), err


def test_several_programs_leave_nothing(host: Host, way: str) -> None:
    with pair(way, f"127.0.0.1:{host.port}") as (far, near):
        before = None
        for _ in range(3):
            clients = [start_program(host, near) for _ in range(3)]
            for client in clients:
                out, err = client.communicate(timeout=120)
                assert out == "1\n", err
            host.wait_until(lambda: not host.sessions(), "the sessions to end")
            time.sleep(0.5)
            counted = (far.descriptors(), near.descriptors())
            assert counted == (before or counted)
            before = counted


def test_through_gpupool_run(host: Host) -> None:
    """The command starts the program's side by itself, and ends it."""
    relay_program()
    with relay("tcp", "listen", "127.0.0.1:0", "to", f"127.0.0.1:{host.port}") as far:
        done = host.run(
            "tcp",
            sys.executable,
            *("-m", "gpupool.cli", "run", "--endpoint", f"rdma://{far.address}", "--"),
            *(sys.executable, "-c", PROGRAM),
            GPUPOOL_NATIVE_DIR=str(host.native),
            UCX_TLS="tcp",
        )
        assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert not running("dial")


def running(word: str) -> list[int]:
    """Relays of this test run's that have this word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == str(relay_program()).encode() and word.encode() in words:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("which", ["far", "near"])
def test_a_relay_that_dies(host: Host, which: str) -> None:
    """The program gets an error, the session ends, and nothing hangs."""
    with pair("tcp", f"127.0.0.1:{host.port}") as (far, near):
        client = start_program(host, near, "again")
        assert client.stdout is not None
        assert client.stdout.readline() == "1\n"
        os.kill((far if which == "far" else near).process.pid, signal.SIGKILL)
        out, _ = client.communicate("go\n", timeout=60)
        assert out == "go\nerror 46\n"
        host.wait_until(lambda: not host.sessions(), "the session to end")


def test_a_program_that_dies(host: Host, way: str) -> None:
    with pair(way, f"127.0.0.1:{host.port}") as (_, near):
        client = start_program(host, near, "again")
        assert client.stdout is not None
        assert client.stdout.readline() == "1\n"
        client.kill()
        client.communicate()
        host.wait_until(lambda: not host.sessions(), "the session to end")


def test_nobody_behind_the_host_side(way: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with (
            pair(way, f"127.0.0.1:{unused.getsockname()[1]}") as (_, near),
            socket.create_connection(near.place, timeout=60) as connection,
        ):
            assert connection.recv(1) == b""


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serves every connection in a thread; the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def test_bytes_keep_their_order(way: str) -> None:
    """Pieces of very different size, which UCX sends in different ways; both directions at once."""

    def echo(connection: socket.socket) -> None:
        with connection:
            while piece := connection.recv(70_000):
                connection.sendall(piece)

    with (
        server(echo) as address,
        pair(way, address) as (_, near),
        socket.create_connection(near.place, timeout=60) as connection,
    ):
        pieces = [os.urandom((1, 100, 5_000, 90_000, 700_000)[turn % 5]) for turn in range(200)]
        sent = hashlib.sha256(b"".join(pieces))

        def send() -> None:
            for piece in pieces:
                connection.sendall(piece)

        sender = threading.Thread(target=send)
        sender.start()
        got, left = hashlib.sha256(), sum(map(len, pieces))
        while left > 0:
            piece = connection.recv(1 << 20)
            assert piece
            got.update(piece)
            left -= len(piece)
        sender.join()
        assert got.digest() == sent.digest()


def test_a_reader_that_does_not_read(way: str) -> None:
    """What is under way is bounded: the writer has to wait, and the relays do not grow."""
    reading = threading.Event()

    def slow(connection: socket.socket) -> None:
        with connection:
            reading.wait(60)
            while connection.recv(1 << 20):
                pass
            connection.sendall(b"")

    with (
        server(slow) as address,
        pair(way, address) as (far, near),
        socket.create_connection(near.place, timeout=60) as connection,
    ):
        connection.sendall(b"x")
        time.sleep(0.5)
        before = (far.memory_kib(), near.memory_kib())
        connection.settimeout(3)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 256 << 20:
                sent += connection.send(bytes(1 << 20))
        assert sent < 64 << 20, "the relays took what nobody reads"
        grown = (far.memory_kib() - before[0], near.memory_kib() - before[1])
        assert max(grown) < 32 << 10
        reading.set()
        connection.settimeout(60)
        connection.sendall(bytes(1 << 20))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A peer that breaks the relays' rules."""
    relay_program()
    program = tmp_path_factory.mktemp("ucx") / "hostile"
    source = ROOT / "tests" / "e2e" / "ucx_hostile.cpp"
    subprocess.run(
        ["g++", "-std=c++20", f"-I{ROOT}", source, "-lucp", "-lucs", "-o", program],
        check=True,
        timeout=120,
    )
    return program


@pytest.mark.parametrize(
    "what",
    [
        "header",
        "kind",
        "far",
        "again",
        "large",
        "empty",
        "credit",
        "done",
        "flood",
        "small",
        "gap",
    ],
)
def test_a_peer_that_breaks_the_rules(hostile: Path, what: str) -> None:
    """It is hung up on, takes no memory, and nobody else notices."""
    reading = threading.Event()
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            first = connection.recv(5)
            if first == b"hello":
                connection.sendall(first)
            reading.wait(60)
            with contextlib.suppress(ConnectionError):
                while connection.recv(1 << 20):
                    pass
            ended.set()

    with (
        server(serve) as address,
        pair("tcp", address) as (far, near),
        socket.create_connection(near.place, timeout=60) as friend,
    ):
        friend.sendall(b"hello")
        assert friend.recv(5) == b"hello"
        before = far.memory_kib()
        host, port = far.place
        done = subprocess.run(
            [hostile, host, str(port), what],
            env=dict(os.environ, UCX_TLS="tcp"),
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, "the relay did not hang up"
        assert far.memory_kib() - before < 24 << 10
        reading.set()
        assert ended.wait(30), "what it had said goes on to hostd, and then its end"
        friend.sendall(b"more")
        with socket.create_connection(near.place, timeout=60) as another:
            another.sendall(b"hello")
            assert another.recv(5) == b"hello"


def test_idle_relays_use_no_processor(host: Host, way: str) -> None:
    with pair(way, f"127.0.0.1:{host.port}") as relays:
        client = start_program(host, relays[1], "again")
        assert client.stdout is not None
        assert client.stdout.readline() == "1\n"

        def ticks() -> int:
            texts = [Path(f"/proc/{one.process.pid}/stat").read_text() for one in relays]
            return sum(sum(map(int, text.rpartition(")")[2].split()[11:13])) for text in texts)

        time.sleep(0.5)
        before = ticks()
        time.sleep(2)
        assert ticks() - before <= 4  # of 200 hundredths
        client.kill()
        client.communicate()


def test_the_command_lines(tmp_path: Path) -> None:
    program = relay_program()
    for words in ([], ["listen"], ["dial", "a:1", "to", "b:1"], ["--parent", "1", "listen"]):
        refused = subprocess.run([program, *words], capture_output=True, timeout=20, check=False)
        assert refused.returncode in (1, 2), words
    done = subprocess.run(
        [str(program), "listen", "nonsense", "to", "127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert "no HOST:PORT" in done.stderr
    environment = dict(os.environ, GPUPOOL_NATIVE_DIR=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "gpupool.cli", "run", "--endpoint", "rdma://h:1", "--", "true"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=20,
        check=False,
    )
    assert done.returncode == 125
    assert "libucx-dev" in done.stderr
