"""Errors of calls that nobody waited for: they surface at the next wait, and faults stay."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import Host


@pytest.mark.parametrize(
    "wait",
    [
        'result(driver, "cuCtxSynchronize")',
        'result(driver, "cuStreamSynchronize", stream)',
        'result(driver, "cuEventSynchronize", event)',
    ],
)
def test_fault_in_a_kernel_surfaces_at_the_wait_and_stays(
    host: Host, transport: str, wait: str
) -> None:
    text = f"""
import time
from tests.e2e.client import *
driver = Driver()
counter = Counter(driver)
stream, event = driver.stream(), c_void_p()
driver.call("cuEventCreate", ctypes.byref(event), 0)
module = load_module(driver, PTX)
function = get_function(driver, module, "poke")
bad = Parameters(c_uint64(0x10))
print(launch(driver, function, parameters=bad, stream=stream), end=" ")
code = result(driver, "cuEventRecord", event, stream)
assert code in (0, 700), code  # the worker may have noticed already
start = time.monotonic()
print({wait}, end=" ")
out = c_uint64()
codes = {{
    counter.add(),
    result(driver, "cuCtxSynchronize"),
    result(driver, "cuMemAlloc_v2", ctypes.byref(out), 4096),
    result(driver, "cuMemcpyDtoH_v2", ctypes.byref(out), counter.data, 8),
    result(driver, "cuMemcpyHtoD_v2", counter.data, ctypes.byref(out), 8),
    result(driver, "cuStreamQuery", stream),
    result(driver, "cuEventQuery", event),
    result(driver, "cuStreamSynchronize", stream),
    result(driver, "cuMemFree_v2", counter.data),
    result(driver, "cuModuleLoadData", ctypes.byref(out), PTX),
}}
print(codes, time.monotonic() - start < 2)
"""
    done = host.run(transport, sys.executable, "-c", text)
    assert done.stdout == "0 700 {700} True\n", done.stderr
    assert done.stderr.count("\n") == 1
    assert "error 700" in done.stderr


def test_fault_ends_that_session_only(host: Host, transport: str) -> None:
    bad = """
from tests.e2e.client import *
driver = Driver()
poke(driver, 0x10)
print(result(driver, "cuCtxSynchronize"))
"""
    good = """
from tests.e2e.client import *
counter = Counter()
print("running", flush=True)
input()
counter.add()
print(counter.value())
"""
    client = host.start_client(transport, sys.executable, "-c", good)
    assert client.stdout is not None
    assert client.stdout.readline() == "running\n"
    assert host.run(transport, sys.executable, "-c", bad).stdout == "700\n"
    output, errors = client.communicate("go\n", timeout=20)
    assert output == "1\n", errors


def test_fault_is_seen_by_a_wait_in_another_context(host: Host, transport: str) -> None:
    """The waiting thread has a context of its own current, or none: the stream is still asked."""
    text = """
from tests.e2e.client import *
driver = Driver()
stream, event = driver.stream(), c_void_p()
driver.call("cuEventCreate", ctypes.byref(event), 0)
function = get_function(driver, load_module(driver, PTX), "poke")
driver.call("cuCtxSynchronize")
launch(driver, function, parameters=Parameters(c_uint64(0x10)), stream=stream)
result(driver, "cuEventRecord", event, stream)
driver.lib.cuCtxSetCurrent(None)
print(result(driver, "cuEventSynchronize", event))
"""
    assert host.run_python(transport, text) == "700\n"


def test_polls_see_a_fault(host: Host, transport: str) -> None:
    text = """
import time
from tests.e2e.client import *
driver = Driver()
stream, event = driver.stream(), c_void_p()
driver.call("cuEventCreate", ctypes.byref(event), 0)
function = get_function(driver, load_module(driver, PTX), "poke")
launch(driver, function, parameters=Parameters(c_uint64(0x10)), stream=stream)
result(driver, "cuEventRecord", event, stream)
end = time.monotonic() + 10
while (code := result(driver, "cuEventQuery", event)) == 600 and time.monotonic() < end:
    pass
print(code)
"""
    assert host.run_python(transport, text) == "700\n"


def test_error_of_a_call_that_was_not_waited_for(host: Host, transport: str) -> None:
    """Write to an address that is nobody's: the call returns, the next wait tells, once."""
    text = """
from tests.e2e.client import *
driver = Driver()
counter = Counter(driver)
stream = driver.stream()
where = 0x20  # no device memory, 32-bit aligned
first = result(
    driver, "cuStreamWriteValue32_v2", stream, c_uint64(where), c_uint(1), c_uint(0)
)
second = result(driver, "cuStreamSynchronize", stream)
third = result(driver, "cuCtxSynchronize")
assert counter.add() == 0
print(first, second, third, counter.value())
"""
    assert host.run_python(transport, text) == "0 1 0 1\n"
