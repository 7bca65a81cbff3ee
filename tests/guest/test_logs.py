"""cuLogs*: what the runtime in this process has logged, and the calls that failed."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.conftest import Host

PRELUDE = """
import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from tests.guest.cuda import Driver
lib = ctypes.CDLL("libcuda.so.1")
FAILED = b"[CUDA][E] cuMemAlloc_v2 returned CUDA_ERROR_INVALID_VALUE\\n"
def same(got, wanted):
    assert got == wanted, f"got {got!r}, wanted {wanted!r}"
def fail():
    same(driver.result("cuMemAlloc_v2", None, 16), 1)
def dump(iterator=None, room=25600):
    buffer = ctypes.create_string_buffer(b"x" * room, room)
    size = c_size_t(room)
    place = None if iterator is None else byref(iterator)
    result = lib.cuLogsDumpToMemory(place, buffer, byref(size), 0)
    same(len(buffer.value), size.value)
    return result, buffer.value
driver = Driver()
"""


def test_failed_calls_are_logged(host: Host, transport: str, tmp_path: Path) -> None:
    host.run_python(
        transport,
        PRELUDE
        + f"""
now = c_uint(99)
same(lib.cuLogsCurrent(byref(now), 0), 0)
same(dump(now), (0, b""))
fail()
driver.call("cuMemAlloc_v2", byref(c_void_p()), 16)
fail()
before = c_uint(now.value)
same(dump(before), (0, FAILED * 2))
same(before.value, now.value + 2)
same(dump(before), (0, b""))
assert dump()[1].endswith(FAILED * 2)
# The newest messages win; a note at the head says that others are left out.
result, text = dump(c_uint(now.value), 2 * len(FAILED) - 1 + 64)
same(result, 0)
assert text.endswith(FAILED), text
result, text = dump(c_uint(now.value), 10)
same((result, text), (1, b""))
file = {str(tmp_path / "log")!r}
same(lib.cuLogsDumpToFile(byref(now), file.encode(), 0), 0)
assert open(file, "rb").read().startswith(FAILED * 2)
for result in (
    lib.cuLogsCurrent(None, 0), lib.cuLogsCurrent(byref(now), 1),
    lib.cuLogsDumpToFile(None, None, 0), lib.cuLogsDumpToFile(None, b"/nowhere/at/all", 0),
    lib.cuLogsDumpToMemory(None, None, byref(c_size_t(9)), 0),
    lib.cuLogsUnregisterCallback(c_void_p(99)), lib.cuLogsRegisterCallback(None, None, None),
):
    same(result, 1)
for i in range(2000):
    fail()
result, text = dump(c_uint(0))
same(result, 0)
assert text.startswith(b"[CUDA][W] older messages are "), text[:80]
assert text.endswith(FAILED * 100)
""",
    )


def test_callbacks_are_told_once(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
heard = []
@ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p, c_size_t)
def callback(data, level, text, size):
    heard.append((data, level, ctypes.string_at(text, size)))
    fail()  # what it causes itself it is not told of
handle = c_void_p()
same(lib.cuLogsRegisterCallback(callback, c_void_p(7), byref(handle)), 0)
fail()
same(heard, [(7, 0, FAILED)])
same(lib.cuLogsUnregisterCallback(handle), 0)
fail()
same(len(heard), 1)
same(lib.cuLogsUnregisterCallback(handle), 1)
""",
    )


def test_quiet_programs_log_too(host: Host, transport: str) -> None:
    """GPUPOOL_LOG=off silences stderr, not the log that the program asks for."""
    done = host.run(
        transport,
        sys.executable,
        "-c",
        PRELUDE
        + """
same(driver.result("cuCoredumpGetAttribute", 1, byref(c_int()), byref(c_size_t(4))), 801)
result, text = dump()
same(result, 0)
assert b"cuCoredumpGetAttribute is not forwarded" in text, text
""",
        GPUPOOL_LOG="off",
    )
    assert (done.returncode, done.stderr) == (0, "")
