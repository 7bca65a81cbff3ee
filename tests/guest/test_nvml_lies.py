"""The guest's NVML and a host that answers nonsense: an error in bounded time, never a crash."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gpupool.wire.hello import Welcome, WelcomeStatus
from gpupool.wire.query import QUERY_BYTES, GpuReport, ProcessReport, Query, Report
from tests.guest.shim import shim_path

GPU = GpuReport("a card", "GPU-00000000-0000-0000-0000-000000000001", "00000000:01:00.0", 1 << 30)
REPORT = Report((GPU,), (ProcessReport(0, 7, 5, program="p"),), "580.1", "0.1.0", 13000)
RAW = REPORT.encode()
# Where numbers of a Report's head are (wire/query.py).
BYTES, GPU_COUNT, GPU_BYTES, PROCESS_COUNT, PROCESS_BYTES = 8, 12, 16, 20, 24
HEAD = 144

ASK = """
import ctypes, sys
nvml = ctypes.CDLL(sys.argv[1])
result = nvml.nvmlInit_v2()
print(result)
if result == 0:
    count, device = ctypes.c_uint(), ctypes.c_void_p()
    assert nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    name, memory = ctypes.create_string_buffer(200), (ctypes.c_ulonglong * 3)()
    for index in range(count.value):
        assert nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0
        assert nvml.nvmlDeviceGetName(device, name, 200) == 0
        print(name.value.decode(), nvml.nvmlDeviceGetMemoryInfo(device, memory), memory[0])
"""


@contextmanager
def host(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A socket where `answer` deals with each connection; its address."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as folder:
        path = str(Path(folder) / "s")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen()
            listener.settimeout(60)

            def serve() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    with connection:
                        answer(connection)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            yield f"unix:{path}"
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def ask(answer: Callable[[socket.socket], None]) -> tuple[list[str], str]:
    """What a program prints that asks such a host, and its stderr."""
    library = shim_path().with_name("libnvidia-ml.so.1")
    with host(answer) as address:
        done = subprocess.run(
            [sys.executable, "-c", ASK, str(library)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "GPUPOOL_ENDPOINT": address, "GPUPOOL_TRANSPORT": ""},
        )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def saying(raw: bytes) -> Callable[[socket.socket], None]:
    """Reads the Query, sends these bytes, and closes."""

    def answer(connection: socket.socket) -> None:
        received = b""
        while len(received) < QUERY_BYTES:
            received += connection.recv(QUERY_BYTES)
        Query.decode(received)
        connection.sendall(raw)

    return answer


def changed(at: int, value: int) -> bytes:
    """The good report with one number of its head changed."""
    return RAW[:at] + struct.pack("<I", value) + RAW[at + 4 :]


def test_an_honest_host() -> None:
    assert ask(saying(RAW)) == (["0", f"a card 0 {1 << 30}"], "")


def test_a_later_host_may_have_appended() -> None:
    size = GpuReport.LAYOUT.size
    longer = changed(BYTES, HEAD + 8)[:HEAD] + b"\xff" * 8 + RAW[HEAD : HEAD + size]
    longer += b"\xff" * 16 + RAW[HEAD + size :]
    longer = longer[:GPU_BYTES] + struct.pack("<I", size + 16) + longer[GPU_BYTES + 4 :]
    assert ask(saying(longer))[0] == ["0", f"a card 0 {1 << 30}"]


def test_a_name_without_an_end() -> None:
    raw = RAW[:HEAD] + b"x" * 96 + RAW[HEAD + 96 :]
    assert ask(saying(raw))[0] == ["0", "x" * 96 + f" 0 {1 << 30}"]


def test_processes_of_gpus_that_are_not_there() -> None:
    wild = replace(REPORT.processes[0], gpu=0xFFFFFFFF)
    assert ask(saying(replace(REPORT, processes=(wild,)).encode()))[0][0] == "0"


@pytest.mark.parametrize(
    "raw",
    [
        b"\0" * 400,
        b"GET / HTTP/1.1\r\n" * 40,
        changed(BYTES, 4),
        changed(BYTES, 0xFFFFFFFF),
        changed(GPU_COUNT, 17),
        changed(GPU_COUNT, 0xFFFFFFFF),
        changed(GPU_BYTES, 8),
        changed(GPU_BYTES, 0xFFFFFFFF),
        changed(PROCESS_COUNT, 4097),
        changed(PROCESS_BYTES, 0),
    ],
)
def test_impossible_numbers(raw: bytes) -> None:
    lines, errors = ask(saying(raw))
    assert lines == ["9"]  # DRIVER_NOT_LOADED
    assert "the peer is not a gpupool host, or one of another version" in errors


@pytest.mark.parametrize("size", [0, 1, 143, 144, 200, len(RAW) - 1])
def test_an_answer_that_ends_early(size: int) -> None:
    lines, errors = ask(saying(RAW[:size]))
    assert lines == ["9"]
    assert "the host closed the connection before it answered" in errors


def test_a_refusal_says_why() -> None:
    refusal = Welcome(status=WelcomeStatus.TOKEN, text="no token, no answer").encode()
    lines, errors = ask(saying(refusal))
    assert lines == ["9"]
    assert errors == "gpupool: NVML: no token, no answer\n"


def test_silence_has_an_end() -> None:
    """Byte after byte is no way around it: the time is that of the whole answer."""
    done = threading.Event()

    def drip(connection: socket.socket) -> None:
        for byte in RAW[:100]:
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                break
            if done.wait(0.5):
                break

    lines, errors = ask(drip)
    done.set()
    assert lines == ["9"]
    assert "the host did not answer in 10 s" in errors
