"""Access between the devices of one session."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Host, end_host, make_host

pytestmark = pytest.mark.softgpu  # a machine of CI has at most one GPU


@pytest.fixture(scope="module")
def two_devices() -> Iterator[Host]:
    """A host with two devices."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        host = make_host(Path(name), devices=2)
        yield host
        end_host(host)


PRELUDE = """
import ctypes
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from tests.guest.kernels import *
driver = Driver()
lib = driver.lib
UNSUPPORTED, ENABLED, NOT_ENABLED = 217, 704, 705
def same(got, wanted):
    assert got == wanted, f"got {got!r}, wanted {wanted!r}"
def ok(result): same(result, 0)
contexts = []
for ordinal in range(2):
    context = c_void_p()
    ok(lib.cuDevicePrimaryCtxRetain(byref(context), ordinal))
    contexts.append(context)
def use(ordinal): ok(lib.cuCtxSetCurrent(contexts[ordinal]))
"""


def test_enabling_and_disabling(two_devices: Host, transport: str) -> None:
    two_devices.run_python(
        transport,
        PRELUDE
        + """
can = c_int()
ok(lib.cuDeviceCanAccessPeer(byref(can), 0, 1))
same(can.value, 1)
for attribute in (1, 2, 3, 4):
    ok(lib.cuDeviceGetP2PAttribute(byref(can), attribute, 0, 1))
same(lib.cuDeviceGetP2PAttribute(byref(can), 1, 0, 0), 101)
use(0)
same(lib.cuCtxEnablePeerAccess(contexts[0], 0), UNSUPPORTED)
same(lib.cuCtxEnablePeerAccess(contexts[1], 1), 1)
same(lib.cuCtxDisablePeerAccess(contexts[1]), NOT_ENABLED)
ok(lib.cuCtxEnablePeerAccess(contexts[1], 0))
same(lib.cuCtxEnablePeerAccess(contexts[1], 0), ENABLED)
ok(lib.cuCtxDisablePeerAccess(contexts[1]))
same(lib.cuCtxDisablePeerAccess(contexts[1]), NOT_ENABLED)
same(lib.cuCtxEnablePeerAccess(None, 0), 201)
""",
    )


def test_copies_and_kernels_reach_the_other_device(two_devices: Host, transport: str) -> None:
    two_devices.run_python(
        transport,
        PRELUDE
        + """
pattern = bytes(range(256)) * 16
use(1)
there = driver.alloc(4096)
driver.upload(there, pattern)
use(0)
here = driver.alloc(4096)
ok(lib.cuMemcpyPeer(c_uint64(here), contexts[0], c_uint64(there), contexts[1], c_size_t(4096)))
same(driver.download(here, 4096), pattern)
ok(lib.cuCtxEnablePeerAccess(contexts[1], 0))
fill = get_function(driver, load_module(driver), "fill")
ok(launch(driver, fill, (4, 1, 1), (256, 1, 1), fill_parameters(there, 1024, 7)))
driver.synchronize()
use(1)
same(driver.download(there, 4096), (7).to_bytes(4, "little") * 1024)
# Streams of the two wait for each other's events.
stream, event = c_void_p(), c_void_p()
use(0)
ok(lib.cuEventCreate(byref(event), 2))
ok(launch(driver, fill, (4, 1, 1), (256, 1, 1), fill_parameters(there, 1024, 9)))
ok(lib.cuEventRecord(event, None))
use(1)
ok(lib.cuStreamCreate(byref(stream), 1))
ok(lib.cuStreamWaitEvent(stream, event, 0))
ok(lib.cuMemcpyPeerAsync(
    c_uint64(here), contexts[0], c_uint64(there), contexts[1], c_size_t(4096), stream))
ok(lib.cuStreamSynchronize(stream))
use(0)
same(driver.download(here, 4096), (9).to_bytes(4, "little") * 1024)
""",
    )


@pytest.mark.parametrize("shape", ["cuMemcpyPeer", "cuMemcpy3DPeer"])
def test_a_copy_without_a_stream_comes_after_both_contexts(
    two_devices: Host, transport: str, shape: str
) -> None:
    """cuda.h: after all that is pending in them, and before what follows there."""
    two_devices.run_python(
        transport,
        PRELUDE
        + f"shape = {shape!r}"
        + """
import threading
class Peer3D(ctypes.Structure):
    _fields_ = [
        (side + name, kind)
        for side in ("src", "dst")
        for name, kind in (
            ("X", c_size_t), ("Y", c_size_t), ("Z", c_size_t), ("Lod", c_size_t),
            ("MemoryType", ctypes.c_int), ("Host", c_void_p), ("Device", c_uint64),
            ("Array", c_void_p), ("Context", c_void_p), ("Pitch", c_size_t), ("Height", c_size_t),
        )
    ] + [("Width", c_size_t), ("Height", c_size_t), ("Depth", c_size_t)]
def copy(to, to_context, source, source_context):
    if shape == "cuMemcpyPeer":
        places = (c_uint64(to), to_context, c_uint64(source), source_context)
        return lib.cuMemcpyPeer(*places, c_size_t(4096))
    box = Peer3D(srcMemoryType=2, srcDevice=source, srcContext=source_context.value, srcPitch=64,
                 srcHeight=64, dstMemoryType=2, dstDevice=to, dstContext=to_context.value,
                 dstPitch=64, dstHeight=64, Width=64, Height=64, Depth=1)
    return lib.cuMemcpy3DPeer(byref(box))
use(1)
there, gate, held = driver.alloc(4096), driver.alloc(64), c_void_p()
driver.upload(there, bytes(4096))
driver.upload(gate, bytes(64))
ok(lib.cuStreamCreate(byref(held), 1))
ok(lib.cuStreamWaitValue32_v2(held, c_uint64(gate), 1, 0))
ok(lib.cuMemsetD8Async(c_uint64(there), 5, c_size_t(4096), held))
def open_gate():
    use(1)
    opener = c_void_p()
    ok(lib.cuStreamCreate(byref(opener), 1))
    ok(lib.cuStreamWriteValue32_v2(opener, c_uint64(gate), 1, 0))
use(0)
here = driver.alloc(4096)
late = threading.Timer(0.3, open_gate)
late.start()
ok(copy(here, contexts[0], there, contexts[1]))
late.join()
same(set(driver.download(here, 4096)), {5})
""",
    )
