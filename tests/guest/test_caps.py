"""What one session may take of its host: an error where native CUDA would run out, and one line in
hostd's log.
"""

from __future__ import annotations

import pytest

from tests.conftest import Host

LIMITS = """
window_mib = 1024
pinned_mib = 64
image_mib = 1
handles = 40
streams = 12
"""
PRELUDE = """
import ctypes
from ctypes import byref, c_uint, c_uint64, c_void_p
from tests.guest.cuda import Driver, CudaError
from tests.guest.kernels import load_module
d = Driver()
def until_full(make, at_most):
    made = []
    while len(made) < at_most:
        try:
            made.append(make())
        except CudaError as error:
            assert error.code == 2, error  # CUDA_ERROR_OUT_OF_MEMORY
            return made
    raise AssertionError(f"no cap after {at_most}")
def event():
    event = c_void_p()
    d.call("cuEventCreate", byref(event), 0)
    return event
"""


@pytest.fixture
def capped(own_host: Host) -> Host:
    """A host with small caps."""
    own_host.stop()
    path = own_host.folder / "hostd.toml"
    path.write_text(path.read_text().replace("\nwindow_mib = 1024\n", LIMITS, 1))
    own_host.start()
    return own_host


def lines(host: Host, what: str) -> int:
    """How often hostd's log tells of that cap."""
    found = [line for line in host.log.splitlines() if "at a cap of" in line]
    return sum(what in line for line in found)


def test_handles_and_streams(capped: Host, transport: str) -> None:
    capped.run_python(
        transport,
        PRELUDE
        + """
events = until_full(event, 100)
assert len(events) == 40, len(events)
for one in events[:5]:
    d.call("cuEventDestroy_v2", one)
assert len(until_full(event, 100)) == 5
streams = until_full(d.stream, 100)
assert 8 <= len(streams) <= 12, len(streams)
d.alloc(64)  # waits for the worker, so that it has logged what the client ran into
""",
    )
    capped.wait_until(lambda: lines(capped, "limits.handles") == 1, "one line")
    capped.wait_until(lambda: lines(capped, "limits.streams") == 1, "one line")


def test_pinned_memory(capped: Host, transport: str) -> None:
    capped.run_python(
        transport,
        PRELUDE
        + """
blocks = until_full(lambda: d.pinned(8 << 20), 100)
assert 4 <= len(blocks) <= 8, len(blocks)
d.call("cuMemFreeHost", c_void_p(blocks.pop()))
blocks.append(d.pinned(8 << 20))
""",
    )
    capped.wait_until(lambda: lines(capped, "limits.pinned_mib") == 1, "one line")


def test_images(capped: Host, transport: str) -> None:
    """An image is one that compiles, with a comment that makes it large."""
    capped.run_python(
        transport,
        PRELUDE
        + """
text = b".version 7.0\\n.target sm_70\\n.address_size 64\\n//" + b"x" * 200_000
text += b"\\n.visible .entry empty() { ret; }\\n"
def module():
    return load_module(d, text)
modules = until_full(module, 20)
assert 3 <= len(modules) <= 5, len(modules)
d.call("cuModuleUnload", modules.pop())
modules.append(module())
""",
    )
    capped.wait_until(lambda: lines(capped, "limits.image_mib") == 1, "one line")
