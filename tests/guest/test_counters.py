"""What a program can learn of its own calls: while it runs, and at its end from a file."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Host
from tests.guest.shim import run_without_host

PROGRAM = """
import ctypes, json, os
from gpupool.guest import counters
driver = ctypes.CDLL("libcuda.so.1")
assert counters.read() is None, "before cuInit"
assert driver.cuInit(0) == 0
context = ctypes.c_void_p()
assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
assert driver.cuCtxSetCurrent(context) == 0
memory = ctypes.c_uint64()
assert driver.cuMemAlloc_v2(ctypes.byref(memory), 4096) == 0
before = counters.read()
host = ctypes.create_string_buffer(4096)
for turn in range(10):
    assert driver.cuMemsetD8_v2(memory, turn, 4096) == 0
    assert driver.cuMemcpyDtoH_v2(host, memory, 4096) == 0
after = counters.read()
if os.fork() == 0:
    os._exit(0 if counters.read() is None else 1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0, "a forked child has no session"
print(json.dumps([before, after]))
"""


def test_counters_of_a_running_program(host: Host, transport: str, tmp_path: Path) -> None:
    file = tmp_path / "counters.json"
    printed = host.run_python(transport, PROGRAM, GPUPOOL_STATISTICS_FILE=str(file))
    before, after = json.loads(printed)
    assert after["transport"] == transport
    assert after["device"] == before["device"] != ""
    assert after["messages"] - before["messages"] >= 20
    waited = sum(after["waits"].values()) - sum(before["waits"].values())
    # A copy that finds its data there already has not waited.
    assert 0 < waited <= 20
    at_exit = json.loads(file.read_text())
    assert at_exit["messages"] >= after["messages"]
    assert at_exit["waits"].keys() >= after["waits"].keys()


def test_text_is_cut_to_the_buffer() -> None:
    """Without a session there is nothing to tell; a short or absent buffer is no danger."""
    run_without_host(
        """
import ctypes, sys
driver = ctypes.CDLL(sys.argv[1])
table = ctypes.POINTER(ctypes.c_void_p)()
identifier = bytes.fromhex("2a3beb86f5ef72e49fba5e86824307df")
assert driver.cuGetExportTable(ctypes.byref(table), identifier) == 0
assert table[0] == 16
snapshot = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t)(table[1])
assert snapshot(None, 0) == 0
text = ctypes.create_string_buffer(b"before", 8)
assert snapshot(text, 8) == 0 and text.value == b""
"""
    )
