"""Two programs of a test that talk to each other in lines, each with a session of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.conftest import ROOT, Host
from tests.guest.test_memory import PRELUDE, VMM

# What both programs of a test can do. They talk in lines: say() and hear().
TALK = """
INVALID_HANDLE, NOT_READY, INVALID_CONTEXT = 400, 600, 201
Handle = ctypes.c_ubyte * 64
INTERPROCESS = 4 | 2                                   # with timing disabled
def pattern(size):                                     # the same in every process
    return (bytes(range(251)) * (size // 251 + 1))[:size]
def say(*words):
    print(*words, flush=True)
def hear():
    return sys.stdin.readline().split()
def export_memory(address):
    handle = Handle()
    d.call("cuIpcGetMemHandle", byref(handle), c_uint64(address))
    return bytes(handle).hex()
class MemHandle(ctypes.Structure):
    _fields_ = (("data", Handle),)
def handle_of(text):
    return MemHandle(Handle(*bytes.fromhex(text)))
def open_memory(text, flags=1):
    address = c_uint64()
    code = lib.cuIpcOpenMemHandle_v2(byref(address), handle_of(text), c_uint(flags))
    return address.value if code == 0 else -code
def new_event(flags=INTERPROCESS):
    event = c_void_p()
    d.call("cuEventCreate", byref(event), c_uint(flags))
    return event
def export_event(event):
    handle = Handle()
    d.call("cuIpcGetEventHandle", byref(handle), event)
    return bytes(handle).hex()
def open_event(text):
    event = c_void_p()
    code = lib.cuIpcOpenEventHandle(byref(event), handle_of(text))
    return event if code == 0 else -code
"""


class Talker:
    """One program of a test."""

    def __init__(self, host: Host, transport: str, text: str, **variables: str) -> None:
        fds = tuple(int(fd) for fd in variables.get("PASS_FDS", "").split(",") if fd)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + VMM + TALK + text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=fds,
            env=dict(host.client_environment(transport), PYTHONPATH=str(ROOT), **variables),
        )

    def hear(self) -> str:
        """The next line; fails with what the program complained of."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate(timeout=30)
            raise AssertionError(f"ended with {self.process.returncode}:\n{errors}")
        return line.strip()

    def say(self, *words: str) -> None:
        """A line for the program."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Waits until it has ended well."""
        out, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, out + errors


@contextmanager
def two(host: Host, transport: str, one: str, other: str) -> Iterator[tuple[Talker, Talker]]:
    """Two programs, ended in any case."""
    talkers = Talker(host, transport, one), Talker(host, transport, other)
    try:
        yield talkers
        for talker in talkers:
            talker.end()
    finally:
        for talker in talkers:
            if talker.process.poll() is None:
                talker.process.kill()
                talker.process.wait()


def relay(source: Talker, target: Talker) -> None:
    """One line from one program to the other."""
    target.say(source.hear())
