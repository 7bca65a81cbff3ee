"""Several connections a session: what they carry, what they cost, and how they end."""

from __future__ import annotations

import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gpupool.wire import hello as wire_hello
from tests.conftest import Host
from tests.e2e.observe import ADD_ONCE, cpu_s, gone, wait_for_line, worker_of
from tests.e2e.proxy import proxy
from tests.e2e.test_corruption import (
    BASE,
    DATA,
    REPLY,
    STAGING,
    frame,
    receive,
    slot,
    slots,
    welcome_bytes,
)

AWAIT = 7
LANE_BYTES = 256 << 10  # wire/cpp/lanes.hpp

# Both ways, pageable and pinned, at sizes around a chunk's and the limit from which several
# connections are used; many copies in a row, so that one may overtake another if anything can.
COPIES = """
import ctypes, os, random
from ctypes import c_uint64, c_void_p, byref
from tests.guest.cuda import Driver
driver = Driver()
CHUNK = 256 << 10
sizes = [1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 3 * CHUNK + 5, (4 << 20) + 7, 33 << 20]
noise = os.urandom(max(sizes))
pinned = c_void_p()
driver.call("cuMemHostAlloc", byref(pinned), ctypes.c_size_t(max(sizes)), ctypes.c_uint(0))
device = driver.alloc(max(sizes))
for turn in range(2):
    for size in sizes:
        data = noise[turn:size] + noise[:turn] if size > 2 else noise[:size]
        driver.upload(device, data)
        assert driver.download(device, size) == data, ("pageable", size)
        ctypes.memmove(pinned, data[::-1], size)
        driver.call("cuMemcpyHtoD_v2", c_uint64(device), pinned, ctypes.c_size_t(size))
        ctypes.memset(pinned, 0, size)
        driver.call("cuMemcpyDtoH_v2", pinned, c_uint64(device), ctypes.c_size_t(size))
        assert ctypes.string_at(pinned, size) == data[::-1], ("pinned", size)
rows = [random.Random(i).randbytes(700_000) for i in range(24)]
blocks = [driver.alloc(700_000) for _ in rows]
stream = c_void_p()
driver.call("cuStreamCreate", byref(stream), ctypes.c_uint(1))
for place, row in enumerate(rows):
    at = pinned.value + place * 700_000
    ctypes.memmove(at, row, len(row))
    driver.call("cuMemcpyHtoDAsync_v2", c_uint64(blocks[place]), c_void_p(at), ctypes.c_size_t(len(row)), stream)
driver.call("cuStreamSynchronize", stream)
ctypes.memset(pinned, 0, 24 * 700_000)
for place, block in enumerate(blocks):
    at = pinned.value + place * 700_000
    driver.call("cuMemcpyDtoHAsync_v2", c_void_p(at), c_uint64(block), ctypes.c_size_t(700_000), stream)
driver.call("cuStreamSynchronize", stream)
assert [ctypes.string_at(pinned.value + i * 700_000, 700_000) for i in range(24)] == rows
print("same")
"""  # noqa: E501


@pytest.mark.parametrize(("asked", "used"), [("1", 1), ("2", 2), ("4", 4), ("16", 8)])
def test_data_is_the_same_over_any_number(host: Host, asked: str, used: int) -> None:
    before = host.log
    assert host.run_python("tcp", COPIES, GPUPOOL_TCP_CONNECTIONS=asked) == "same\n"
    assert f"connections={used} " in host.log[len(before) :]


def test_every_connection_carries_its_share(host: Host) -> None:
    with proxy(host.port) as flow:
        assert host.run_python("tcp", COPIES, GPUPOOL_ENDPOINT=flow.endpoint) == "same\n"
        assert len(flow.links) == 4  # the default
        # Who takes a chunk is a matter of who is free; in 400 MB each is for some.
        assert all(link.up > 4 << 20 and link.down > 4 << 20 for link in flow.links)


def test_small_messages_stay_on_the_first(host: Host) -> None:
    with proxy(host.port) as flow:
        host.run_python("tcp", ADD_ONCE, GPUPOOL_ENDPOINT=flow.endpoint)
        assert [link.up for link in flow.links[1:]] == [wire_hello.LANE_BYTES] * 3
        assert [link.down for link in flow.links[1:]] == [0] * 3


def test_a_wrong_number_is_named(host: Host) -> None:
    text = 'import ctypes; print(ctypes.CDLL("libcuda.so.1").cuInit(0))'
    done = host.run("tcp", sys.executable, "-c", text, GPUPOOL_TCP_CONNECTIONS="17")
    assert done.stdout == "100\n"
    assert "GPUPOOL_TCP_CONNECTIONS is '17'; it must be a whole number from 1 to 16" in done.stderr


LOOP = """
import sys
from tests.e2e.client import *
counter = Counter()
print("running", flush=True)
sys.stdin.readline()
free, total = c_uint64(), c_uint64()
print(result(counter.driver, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total)), flush=True)
"""  # noqa: E501


@pytest.mark.parametrize("place", [0, 1, 3])
def test_the_end_of_any_connection_ends_the_session(own_host: Host, place: int) -> None:
    with proxy(own_host.port) as flow:
        client = own_host.start_client(
            "tcp", sys.executable, "-c", LOOP, GPUPOOL_ENDPOINT=flow.endpoint
        )
        wait_for_line(client, "running")
        worker = worker_of(own_host)
        flow.links[place].cut()
        own_host.wait_until(lambda: gone(worker), "the worker to end", 10)
        output, errors = client.communicate("go\n", timeout=20)
    assert output == "46\n"
    assert "the worker on the host is gone" in errors
    assert "client closed the connection" in own_host.log


def test_idle_connections_cost_nothing(own_host: Host) -> None:
    client = own_host.start_client("tcp", sys.executable, "-c", LOOP, GPUPOOL_TCP_CONNECTIONS="8")
    wait_for_line(client, "running")
    worker = worker_of(own_host)
    threads = len(list(Path(f"/proc/{client.pid}/task").iterdir()))
    time.sleep(0.5)
    before = cpu_s(client.pid), cpu_s(worker)
    time.sleep(3)
    spent = cpu_s(client.pid) - before[0], cpu_s(worker) - before[1]
    client.communicate("go\n", timeout=20)
    assert max(spent) <= 0.02, (spent, threads)


FORKS = """
import os
from tests.e2e.client import *
counter = Counter()
child = os.fork()
if child == 0:
    sockets = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
               if os.path.islink(f"/proc/self/fd/{fd}")]
    os._exit(sum(link.startswith("socket:") for link in sockets))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
data = os.urandom(5 << 20)
block = counter.driver.alloc(len(data))
counter.driver.upload(block, data)
print(counter.driver.download(block, len(data)) == data)
for fd in os.listdir("/proc/self/fd"):
    if os.path.exists(f"/proc/self/fd/{fd}"):
        assert not os.get_inheritable(int(fd)) or int(fd) < 3, fd
"""


def test_a_forked_child_has_none_of_them(host: Host) -> None:
    assert host.run_python("tcp", FORKS) == "0\nTrue\n"


# What flows is bounded by credit: the ring's head, and the data area.

FLOOD = """
import sys, threading
from tests.e2e.client import *
counter = Counter()
done = 0
def work():
    global done
    counter.driver.call("cuCtxSetCurrent", context)
    for _ in range(30000):
        assert counter.add() == 0
        done += 1
context = c_void_p()
counter.driver.call("cuCtxGetCurrent", ctypes.byref(context))
thread = threading.Thread(target=work)
print("running", flush=True)
sys.stdin.readline()
thread.start()
thread.join(3)
print(done, thread.is_alive(), flush=True)
sys.stdin.readline()
thread.join()
print(done, counter.value())
"""


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_slow_reader_holds_the_sender_back(own_host: Host, way: str) -> None:
    """Nothing passes one way: launches go on until the ring is full, then the program waits."""
    with proxy(own_host.port) as flow:
        client = own_host.start_client(
            "tcp", sys.executable, "-c", FLOOD, GPUPOOL_ENDPOINT=flow.endpoint
        )
        wait_for_line(client, "running")
        worker = worker_of(own_host)
        before = resident_mib(client.pid), resident_mib(worker)
        flow.gates[way].clear()
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write("go\n")
        client.stdin.flush()
        done, waiting = client.stdout.readline().split()
        grown = resident_mib(client.pid) - before[0], resident_mib(worker) - before[1]
        assert waiting == "True"
        assert int(done) < 8192 + 64  # one ring, and what was known to be executed
        assert max(grown) < 64
        flow.gates[way].set()
        output, errors = client.communicate("go\n", timeout=60)
    assert output == "30000 30000\n", errors


@contextmanager
def raw_lanes(host: Host, count: int) -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """An honest handshake over several connections; what follows is up to the test."""
    token = (host.folder / "token").read_bytes().strip()
    nonce = bytes(range(16))
    with ExitStack() as stack:
        lanes = []
        for index in range(count):
            lane = stack.enter_context(socket.create_connection(("127.0.0.1", host.port), 20))
            lane.sendall(wire_hello.LaneHello(index=index, nonce=nonce, token=token).encode())
            lanes.append(lane)
        main = stack.enter_context(socket.create_connection(("127.0.0.1", host.port), 20))
        kind = wire_hello.TransportKind.TCP
        hello = wire_hello.Hello(
            transport=kind, window_base=BASE, token=token, nonce=nonce, lanes=count
        )
        main.sendall(hello.encode())
        head = receive(main, 12)
        assert struct.unpack_from("<I", head, 8)[0] == wire_hello.WELCOME_BYTES + 8
        rest = receive(main, wire_hello.WELCOME_BYTES + 8 - 12)
        assert struct.unpack("<II", rest[-8:]) == (count, 0)
        yield main, lanes


@pytest.mark.parametrize(
    ("threads", "reason"),
    [(1, "two calls in one reply box"), (1024, "two calls in one reply box|ring overrun")],
)
def test_a_client_that_reads_no_answers_is_ended(host: Host, threads: int, reason: str) -> None:
    """It never overruns the worker, but asks again before it can have an answer, or goes beyond
    the head that it has been told: what is to be told to it is not remembered without bound.

    Which of the two comes first with many threads depends on how much the sockets hold.
    """
    before = host.log
    with raw_lanes(host, 1) as (main, _):
        main.settimeout(20)
        pings = [slot(flags=REPLY, thread=each % threads) for each in range(1024)]
        with pytest.raises(OSError, match=r"reset|Broken pipe"):  # noqa: PT012
            for first in range(1, 400_000, 1024):
                for at in range(0, 1024, 256):
                    main.sendall(slots(*pings[at : at + 256], first=first + at))
                time.sleep(0.03)  # meanwhile the worker executes them
    host.wait_until(lambda: re.search(reason, host.log[len(before) :]) is not None, reason, 10)


def chunk(size: int = 4096, offset: int = STAGING, kind: int = DATA) -> bytes:
    """A frame of data."""
    return frame(kind, 0, offset, size) + bytes(size)


LANE_LIES = {
    "slots": (b"", slots(slot()), "not data on a further connection"),
    "a mark of progress": (b"", frame(6, 0, 0, 1), "not data on a further connection"),
    "an await": (b"", frame(AWAIT, 1, 0, 1), "not data on a further connection"),
    "garbage": (b"", b"\xff" * 24, "not data on a further connection"),
    "no data": (b"", chunk(0), "not data on a further connection"),
    "too much": (b"", chunk((4 << 20) + 1), "not data on a further connection"),
    "data over the ring": (b"", chunk(offset=0x100000), "not data on a further connection"),
    "data that wraps": (b"", frame(DATA, 0, 2**64 - 16, 4096), "not data on a further connection"),
    "await of the first": (frame(AWAIT, 0, 0, 1), b"", "await of no connection"),
    "await of none": (frame(AWAIT, 2, 0, 1), b"", "await of no connection"),
    "await of a far one": (frame(AWAIT, 2**32 - 1, 0, 1), b"", "await of no connection"),
}


@pytest.mark.parametrize("lie", LANE_LIES)
def test_a_lie_on_any_connection_ends_that_session_only(host: Host, lie: str) -> None:
    on_main, on_lane, reason = LANE_LIES[lie]
    before = host.log
    with raw_lanes(host, 1) as (main, (lane,)):
        try:
            main.sendall(on_main)
            lane.sendall(on_lane)
            main.settimeout(10)
            while main.recv(4096):
                pass
        except OSError:
            pass  # the worker left without reading the rest
    host.wait_until(lambda: reason in host.log[len(before) :], "the reason in the log", 10)
    assert "the client broke the protocol" in host.log[len(before) :]
    assert host.run_python("tcp", ADD_ONCE) == "1\n"


def test_what_follows_an_await_waits_for_the_lane(host: Host) -> None:
    with raw_lanes(host, 2) as (main, lanes):
        main.sendall(frame(AWAIT, 2, 0, 2) + slots(slot(flags=REPLY)))
        lanes[1].sendall(chunk())
        main.settimeout(0.7)
        with pytest.raises(TimeoutError):
            main.recv(1)
        lanes[1].sendall(chunk())
        main.settimeout(10)
        assert main.recv(1)


@pytest.mark.parametrize("leaves", ["main", "lane", "other lane"])
def test_an_await_that_never_comes_ends_with_its_client(host: Host, leaves: str) -> None:
    before = host.log
    with raw_lanes(host, 2) as (main, lanes):
        main.sendall(frame(AWAIT, 1, 0, 2**64 - 1) + slots(slot(flags=REPLY)))
        time.sleep(0.2)
        {"main": main, "lane": lanes[0], "other lane": lanes[1]}[leaves].close()
        told = "client closed the connection"  # an earlier session may still end, too
        host.wait_until(lambda: told in host.log[len(before) :], "the end", 10)


def long_welcome(lanes: int) -> bytes:
    """A Welcome that grants lanes."""
    raw = bytearray(welcome_bytes())
    struct.pack_into("<I", raw, 8, len(raw) + 8)
    return bytes(raw) + struct.pack("<II", lanes, 0)


HOST_LIES = {
    "more than were asked": (long_welcome(9), b"", 100, "not a gpupool host"),
    "await of none": (long_welcome(1) + frame(AWAIT, 2, 0, 1), b"", 46, "is gone"),
    "await without lanes": (welcome_bytes() + frame(AWAIT, 1, 0, 1), b"", 46, "is gone"),
    "a store on a lane": (long_welcome(1), frame(3, 0, 0x1000, 1), 46, "further connection"),
    "data over the words": (long_welcome(1), chunk(offset=0x10000), 46, "further connection"),
    "closes a lane": (long_welcome(1), b"", 46, "is gone"),
}


@pytest.mark.parametrize("lie", HOST_LIES)
def test_a_host_that_lies_is_an_error_and_no_hang(host: Host, lie: str) -> None:
    on_main, on_lane, code, reason = HOST_LIES[lie]
    text = 'import ctypes; print(ctypes.CDLL("libcuda.so.1").cuInit(0))'
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        server.settimeout(20)

        def serve() -> None:
            main, _ = server.accept()
            lane, _ = server.accept()
            with main:
                receive(lane, wire_hello.LANE_BYTES)
                receive(main, wire_hello.HELLO_BYTES)
                main.sendall(on_main)
                lane.sendall(on_lane)
                lane.shutdown(socket.SHUT_WR)
                main.settimeout(20)
                while main.recv(4096):
                    pass

        liar = threading.Thread(target=serve)
        liar.start()
        done = host.run(
            "tcp",
            sys.executable,
            "-c",
            text,
            timeout_s=30,
            GPUPOOL_ENDPOINT=address,
            GPUPOOL_TCP_CONNECTIONS="2",
        )
        liar.join()
    assert done.stdout == f"{code}\n", done.stderr
    assert reason in done.stderr
