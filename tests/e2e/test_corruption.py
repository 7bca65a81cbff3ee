"""Clients and hosts that lie: the session ends with a reason in the log, nothing else breaks."""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gpupool.wire import hello as wire_hello
from tests.conftest import Host
from tests.e2e.observe import ADD_ONCE, gone, wait_for_line, worker_of

BASE = 0x2000_0000_0000
# wire/cpp/layout.hpp
REPLY, MARK, BULK_IN, BULK_OUT, PAYLOAD_IN_BULK, ANSWER_IN_BULK = (1 << bit for bit in range(6))
STAGING = 0x80_0000
# wire/api/session.yaml
REGISTER, UNREGISTER, ADOPT, MARK_ONLY, POKE, PING = 2, 3, 4, 5, 6, 7


def handle(kind: int, index: int) -> int:
    """A wire handle of generation 0."""
    return kind << 56 | index


STREAM = 2


def slot(
    function: int = PING,
    flags: int = 0,
    *,
    thread: int = 0,
    context: int = 0,
    size: int | None = None,
    stream: int = 0,
    bulk: tuple[int, int] = (0, 0),
    payload: bytes = b"",
) -> bytes:
    """A slot behind its sequence number."""
    inline = len(payload) if size is None else size
    header = struct.pack("<HHIIIQQQ", function, flags, thread, context, inline, stream, *bulk)
    return (header + payload).ljust(248, b"\0")


# What a dispatcher must refuse, and what it then says. No honest client writes any of these.
LIES = {
    "no such function": (slot(60000), "no such function"),
    "function zero": (slot(0), "no such function"),
    "a function that is never sent": (slot(64), "no such function"),  # cuInit, or a hole
    "unknown flag": (slot(flags=0x8000), "unknown slot flags"),
    "thread": (slot(flags=REPLY, thread=1024), "thread index"),
    "no thread": (slot(flags=REPLY, thread=0xFFFFFFFF), "thread index"),
    "inline size": (slot(size=209), "inline payload too long"),
    "bulk wraps": (slot(flags=BULK_IN, bulk=(2**64 - 256, 4096)), "outside the window"),
    "bulk over the ring": (slot(flags=BULK_IN, bulk=(0x100000, 4096)), "outside the window"),
    "bulk beyond the end": (slot(flags=BULK_OUT, bulk=(STAGING, 2**40)), "outside the window"),
    "payload in no bulk": (slot(flags=PAYLOAD_IN_BULK), "without a bulk piece"),
    "answer in no bulk": (slot(flags=ANSWER_IN_BULK | REPLY), "without a bulk piece"),
    "mark without a stream": (slot(MARK_ONLY, MARK), "mark without a stream"),
    "truncated": (slot(REGISTER, payload=bytes(8)), "message too short"),
    "left over": (slot(PING, payload=bytes(8)), "bytes left over"),
    "registers the control words": (
        slot(REGISTER, payload=struct.pack("<QQ", 0, 1 << 20)),
        "outside the heap",
    ),
    "unregisters the start": (slot(UNREGISTER, payload=bytes(8)), "outside the heap"),
    "handle of another kind": (
        slot(ADOPT, payload=struct.pack("<QI", handle(3, 9), 1)),
        "handle of another kind",
    ),
    "handle zero": (slot(ADOPT, payload=struct.pack("<QI", handle(STREAM, 0), 1)), "out of range"),
    "stream without a word": (
        slot(ADOPT, payload=struct.pack("<QI", handle(STREAM, 8192), 1)),
        "without a completion word",
    ),
    "index of the worker": (
        slot(ADOPT, payload=struct.pack("<QI", handle(STREAM, 0x8000_0009), 1)),
        "without a completion word",
    ),
    "unknown kind of stream": (
        slot(ADOPT, payload=struct.pack("<QI", handle(STREAM, 9), 77)),
        "unknown kind",
    ),
    "poke without a stream": (slot(POKE), "poke without a stream"),
}

# Connects honestly, writes one slot by hand and then calls on.
LIAR = """
import time
from tests.e2e.client import *
counter = Counter()
assert counter.add() == 0
assert counter.value() == 1
base = window_base()
ticket = word(base).value
place = base + 0x100000 + ticket % 8192 * 256
ctypes.memmove(place + 8, bytes.fromhex("{slot}"), 248)
word(base).value = ticket + 1
{publish}
free, total = c_uint64(), c_uint64()
start = time.monotonic()
print("running", flush=True)
code = result(counter.driver, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
print("ended", code, result(counter.driver, "cuCtxSynchronize"), time.monotonic() - start > 9)
"""
PUBLISH = "word(place).value = ticket + 1"


@pytest.mark.parametrize("lie", LIES)
def test_corrupt_slot_ends_that_session_only(host: Host, lie: str) -> None:
    raw, reason = LIES[lie]
    before = host.log
    text = LIAR.replace("{slot}", raw.hex()).replace("{publish}", PUBLISH)
    assert host.run_python("shm", text) == "running\nended 46 46 False\n"
    log = host.log[len(before) :]
    assert "the client broke the protocol" in log
    assert reason in log
    assert "signal" not in log  # a refusal, no crash
    assert host.run_python("shm", ADD_ONCE) == "1\n"


def test_ticket_that_is_never_published_ends_the_session(own_host: Host) -> None:
    """A thread that dies between taking a ticket and publishing it would hold all others up."""
    text = LIAR.replace("{slot}", slot().hex()).replace("{publish}", "")
    client = own_host.start_client("shm", sys.executable, "-c", text)
    wait_for_line(client, "running")
    worker = worker_of(own_host)
    output, errors = client.communicate(timeout=40)
    assert output == "ended 46 46 True\n", errors
    assert "never published it" in own_host.log
    assert gone(worker)


def dial(host: Host) -> socket.socket:
    """A connection to hostd's unix socket."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(f"{host.folder}/hostd.sock")
    return connection


def receive(connection: socket.socket, size: int) -> bytes:
    """Exactly so many bytes, or what came before the end."""
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            break
        data += piece
    return data


def refusal(host: Host, message: bytes) -> wire_hello.Welcome:
    """What hostd answers to these bytes."""
    with dial(host) as connection:
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        return wire_hello.Welcome.decode(receive(connection, wire_hello.WELCOME_BYTES))


def test_other_protocol_version_is_refused_with_both_named(host: Host) -> None:
    message = wire_hello.Hello(protocol_major=99, window_base=BASE).encode()
    welcome = refusal(host, message)
    assert welcome.status == wire_hello.WelcomeStatus.VERSION
    assert "99.2" in welcome.text
    assert "this host 1.2" in welcome.text


@pytest.mark.parametrize("size", [1, 4, 12, 13, 199])
def test_truncated_hello_is_refused_and_others_go_on(host: Host, size: int) -> None:
    welcome = refusal(host, wire_hello.Hello(window_base=BASE).encode()[:size])
    assert welcome.status == wire_hello.WelcomeStatus.BAD_REQUEST
    assert f"{size} of {wire_hello.HELLO_BYTES}" in welcome.text
    assert host.run_python("shm", ADD_ONCE) == "1\n"


def test_hello_of_somebody_else_is_refused(host: Host) -> None:
    welcome = refusal(host, b"GET / HTTP/1.1\r\nHost: gpupool\r\n".ljust(200, b"\0"))
    assert welcome.status == wire_hello.WelcomeStatus.BAD_REQUEST
    assert "magic" in welcome.text


def test_hello_with_an_impossible_base_does_no_harm(host: Host) -> None:
    for base in (0, 1, 0xFFFF_8000_0000_0000, BASE + 1):
        welcome = refusal(host, wire_hello.Hello(window_base=base).encode())
        assert welcome.status != wire_hello.WelcomeStatus.OK
    assert host.run_python("shm", ADD_ONCE) == "1\n"


@contextmanager
def raw_session(host: Host) -> Iterator[socket.socket]:
    """An honest handshake over TCP; what follows is up to the test."""
    token = (host.folder / "token").read_bytes().strip()
    with socket.create_connection(("127.0.0.1", host.port), timeout=20) as connection:
        hello = wire_hello.Hello(
            transport=wire_hello.TransportKind.TCP, window_base=BASE, token=token
        )
        connection.sendall(hello.encode())
        welcome = wire_hello.Welcome.decode(receive(connection, wire_hello.WELCOME_BYTES))
        assert welcome.status == wire_hello.WelcomeStatus.OK, welcome.text
        yield connection


SLOTS, DATA = 1, 2


def frame(kind: int, count: int = 0, offset: int = 0, size: int = 0) -> bytes:
    """A frame header (wire/cpp/stream_frame.hpp)."""
    return struct.pack("<IIQQ", kind, count, offset, size)


def slots(*raw: bytes, first: int = 1) -> bytes:
    """A frame of slots with consecutive sequence numbers."""
    body = b"".join(struct.pack("<Q", first + place) + one for place, one in enumerate(raw))
    return frame(SLOTS, len(raw)) + body


STREAM_LIES = {
    "garbage": (b"\xff" * 24, "frame of unknown kind"),
    "a frame for the client": (frame(3, 0, 0, 1), "frame of unknown kind"),
    "no slots": (frame(SLOTS, 0), "bad slot count"),
    "too many slots": (frame(SLOTS, 257), "bad slot count"),
    "slots out of order": (slots(slot(), first=2), "slots out of order"),
    "a slot twice": (slots(slot()) + slots(slot()), "slots out of order"),
    "data over the ring": (frame(DATA, 0, 0x100000, 4096) + bytes(4096), "data outside"),
    "data that wraps": (frame(DATA, 0, 2**64 - 16, 4096) + bytes(4096), "data outside"),
    "too much data": (frame(DATA, 0, STAGING, (4 << 20) + 1), "data outside"),
    "mark without a word": (slots(slot(MARK_ONLY, MARK, stream=8192)), "without a word"),
    "thread": (slots(slot(flags=REPLY, thread=1024)), "thread index"),
    "bulk answer outside": (
        slots(slot(flags=REPLY | BULK_OUT, bulk=(0, 4096))),
        "bulk piece outside",
    ),
}


@pytest.mark.parametrize("lie", STREAM_LIES)
def test_corrupt_stream_ends_that_session_only(host: Host, lie: str) -> None:
    raw, reason = STREAM_LIES[lie]
    before = host.log
    with raw_session(host) as connection:
        connection.sendall(raw)
        deadline = time.monotonic() + 10
        try:
            while connection.recv(4096):
                assert time.monotonic() < deadline
        except ConnectionResetError:
            pass  # the worker left without reading the rest: that is an end, too
    host.wait_until(lambda: reason in host.log[len(before) :], "the reason in the log", 10)
    log = host.log[len(before) :]
    assert "the client broke the protocol" in log
    assert "signal" not in log
    assert host.run_python("tcp", ADD_ONCE) == "1\n"


@pytest.mark.parametrize("lie", LIES)
def test_corrupt_slot_over_a_stream_ends_that_session_only(host: Host, lie: str) -> None:
    raw, _ = LIES[lie]
    before = host.log
    with raw_session(host) as connection:
        connection.sendall(slots(raw))
        connection.settimeout(10)
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            pass
    host.wait_until(lambda: "session ended" in host.log[len(before) :], "the end", 10)
    log = host.log[len(before) :]
    assert "the client broke the protocol" in log
    assert "signal" not in log


@pytest.mark.parametrize("sent", [slots(slot())[:30], frame(DATA, 0, STAGING, 4096) + b"x", b"\1"])
def test_stream_that_ends_inside_a_message_is_a_client_that_left(host: Host, sent: bytes) -> None:
    before = host.log
    with raw_session(host) as connection:
        connection.sendall(sent)
    told = "client closed the connection"  # an earlier session may still end, too
    host.wait_until(lambda: told in host.log[len(before) :], "the end", 10)


def welcome_bytes(**changes: int) -> bytes:
    """A Welcome that promises a window of 64 MiB and one device."""
    values: dict[str, Any] = {
        "window_bytes": 64 << 20,
        "driver_version": 13000,
        "device_count": 1,
        **changes,
    }
    return wire_hello.Welcome(session_id=1, **values).encode()


HOST_LIES = {
    "closes at once": (b"", 100, "closed the connection"),
    "half a Welcome": (welcome_bytes()[:100], 100, "closed the connection"),
    "something else": (
        b"HTTP/1.1 400 Bad Request\r\n".ljust(328, b"\0"),
        100,
        "not a gpupool host",
    ),
    "a tiny window": (welcome_bytes(window_bytes=4096), 100, "impossible window size"),
    "a huge window": (welcome_bytes(window_bytes=1 << 60), 100, "impossible window size"),
    "closes after Welcome": (welcome_bytes(), 46, "worker on the host is gone"),
    "unknown frame": (welcome_bytes() + b"\xff" * 24, 46, "frame of unknown kind"),
    "store outside": (welcome_bytes() + frame(3, 0, 1 << 40, 1), 46, "worker on the host is gone"),
    "store into a slot": (welcome_bytes() + frame(3, 0, 0x100000, 1), 46, "is gone"),
    "data over the ring": (welcome_bytes() + frame(2, 0, 0x100000, 64) + bytes(64), 46, "is gone"),
    "data beyond a box": (welcome_bytes() + frame(2, 0, 0x300FFC, 64) + bytes(64), 46, "is gone"),
}


@pytest.mark.parametrize("lie", HOST_LIES)
def test_host_that_lies_is_an_error_and_no_hang(host: Host, lie: str) -> None:
    raw, code, reason = HOST_LIES[lie]
    text = 'import ctypes; print(ctypes.CDLL("libcuda.so.1").cuInit(0))'
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            server.settimeout(20)
            connection, _ = server.accept()
            with connection:
                receive(connection, wire_hello.HELLO_BYTES)
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(20)
                while connection.recv(4096):
                    pass

        liar = threading.Thread(target=serve)
        liar.start()
        done = host.run("tcp", sys.executable, "-c", text, timeout_s=30, GPUPOOL_ENDPOINT=address)
        liar.join()
    assert done.stdout == f"{code}\n", done.stderr
    assert reason in done.stderr
