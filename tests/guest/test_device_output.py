"""What kernels print and assert, on the program's own standard output and standard error."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import ROOT, Host

PRELUDE = f"""
import os, pathlib
from tests.guest.kernels import *
driver = Driver()
image = pathlib.Path({str(ROOT / "tests/kernels/output.ptx")!r}).read_bytes()
module = load_module(driver, image)
hello = get_function(driver, module, "hello")
def say(count, stream=None):
    assert launch(driver, hello, (1, 1, 1), (4, 1, 1), Parameters(c_int(count)), stream=stream) == 0
def host(text):
    print(text, flush=True)
"""
LINE = "thread 0 of 4: even  0.00 [ab    ] a 0 ff (nil) %"


@pytest.mark.parametrize(
    "wait",
    [
        'driver.call("cuCtxSynchronize")',
        'driver.call("cuStreamSynchronize", None)',
        'event = c_void_p(); driver.call("cuEventCreate", byref(event), c_uint(0));'
        'driver.call("cuEventRecord", event, None); driver.call("cuEventSynchronize", event)',
        "driver.download(memory, 4)",
    ],
)
def test_printf_comes_with_the_wait(host: Host, transport: str, wait: str) -> None:
    """Between what the program prints before it and after it, each time."""
    out = host.run_python(
        transport,
        PRELUDE
        + f"""
memory = driver.alloc(4)
for i in range(3):
    say(1)
    host("before")
    {wait}
    host("after")
""",
    )
    assert out.splitlines() == ["before", LINE, "after"] * 3


def test_every_format(host: Host, transport: str) -> None:
    out = host.run_python(transport, PRELUDE + "say(3)\ndriver.synchronize()\n")
    assert out.splitlines() == [
        LINE,
        "thread 1 of 4: odd  1.50 [ab    ] b -1234567890123 ff (nil) %",
        "thread 2 of 4: even  3.00 [ab    ] c -2469135780246 ff (nil) %",
    ]


@pytest.mark.parametrize("name", ["basic_plain", "basic_lz4", "basic_zstd"])
def test_code_that_does_not_print_costs_no_message(host: Host, name: str) -> None:
    """Compressed or not: once the worker has looked, waits are reads of memory again."""
    host.run_python(
        "shm",
        PRELUDE.split("image =")[0]
        + f"""
import time
from tests.e2e.client import window_base, word
load_module(driver, pathlib.Path({str(ROOT / "tests/kernels" / name)!r} + ".fatbin").read_bytes())
tail = word(window_base())
deadline = time.monotonic() + 20
asked = 0
while True:
    before = tail.value
    driver.synchronize()
    if tail.value == before:
        break
    asked += 1
    assert time.monotonic() < deadline, "every wait still asks"
    time.sleep(0.01)
assert asked > 0, "the first wait after a load must ask"
""",
    )


def test_compressed_code_prints(host: Host, transport: str) -> None:
    out = host.run_python(
        transport,
        PRELUDE
        + """
from tests.guest.fatbin import fatbin, wrap
driver.call("cuModuleUnload", module)
wrapper, keep = wrap(fatbin(image.decode(), 80, compressed=True))
module = c_void_p()
driver.call("cuModuleLoadData", byref(module), byref(wrapper))
hello = get_function(driver, module, "hello")
say(1)
driver.synchronize()
""",
    )
    assert out.splitlines() == [LINE]


def test_much_output_and_streams(host: Host, transport: str) -> None:
    """More than a pipe and one answer hold, from streams that are gone by then."""
    out = host.run_python(
        transport,
        PRELUDE
        + """
size = c_size_t()
driver.call("cuCtxSetLimit", c_int(1), c_size_t(8 << 20))
driver.call("cuCtxGetLimit", byref(size), c_int(1))
assert size.value >= 8 << 20, size.value
for i in range(1000):
    stream = driver.stream()
    say(4, stream)
    driver.call("cuStreamDestroy_v2", stream)
    if i % 100 == 99:
        driver.synchronize()
host("end")
""",
    )
    lines = out.splitlines()
    assert len(lines) == 4001
    assert lines[-1] == "end"
    assert lines.count(LINE) == 1000


def test_a_failed_assertion(host: Host, transport: str) -> None:
    """Its line on stderr, 710 from then on, what was printed before it not lost, no log of ours."""
    done = host.run(
        transport,
        sys.executable,
        "-c",
        PRELUDE
        + """
say(1)
memory = driver.alloc(64)
driver.upload(memory, bytes(4) + b"\\xff\\xff\\xff\\xff" + bytes(56))
check = get_function(driver, module, "check")
say(1)
assert launch(driver, check, (1, 1, 1), (16, 1, 1), Parameters(c_uint64(memory), c_int(16))) == 0
assert driver.result("cuCtxSynchronize") == 710
assert driver.result("cuCtxSynchronize") == 710
assert driver.result("cuMemAlloc_v2", byref(c_uint64()), 16) == 710
host("end")
""",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [LINE, LINE, "end"]
    lines = done.stderr.splitlines()
    failed = [line for line in lines if "Assertion `in[i] >= 0` failed." in line]
    assert len(failed) == 1, done.stderr
    assert ": block: [0,0,0], thread: [1,0,0] " in failed[0]
    assert all(line in failed or line.startswith("gpupool: ") for line in lines), done.stderr
    assert not [line for line in host.log.splitlines() if "thread 0 of 4" in line]


def test_launch_blocking_prints_at_the_launch(host: Host, transport: str) -> None:
    out = host.run_python(transport, PRELUDE + 'say(1)\nhost("after")\n', CUDA_LAUNCH_BLOCKING="1")
    assert out.splitlines() == [LINE, "after"]
