"""Green contexts: splitting a device's multiprocessors, and working in a part of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Host, end_host, make_host

PRELUDE = """
import ctypes, threading
from ctypes import byref, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from tests.guest.kernels import *
driver = Driver()
lib = driver.lib
INVALID_VALUE, INVALID_DEVICE, INVALID_CONTEXT, INVALID_HANDLE, IS_DESTROYED = 1, 101, 201, 400, 709
RESOURCE_TYPE, RESOURCE_CONFIGURATION = 914, 915
SM = 1
class Resource(ctypes.Structure):
    _fields_ = (("type", c_uint), ("padding", ctypes.c_ubyte * 92), ("sms", c_uint),
                ("least", c_uint), ("alignment", c_uint), ("more", ctypes.c_ubyte * 36))
assert ctypes.sizeof(Resource) == 144
def same(got, wanted):
    assert got == wanted, f"got {got!r}, wanted {wanted!r}"
def ok(result): same(result, 0)
def device_resource(device=0):
    resource = Resource()
    ok(lib.cuDeviceGetDevResource(device, byref(resource), SM))
    return resource
def split(resource, groups, least, flags=0):
    made, count, rest = (Resource * groups)(), c_uint(groups), Resource()
    ok(lib.cuDevSmResourceSplitByCount(
        made, byref(count), byref(resource), byref(rest), flags, least))
    return list(made)[: count.value], rest
def description(*resources):
    out = c_void_p()
    array = (Resource * len(resources))(*resources)
    ok(lib.cuDevResourceGenerateDesc(byref(out), array, len(resources)))
    return out
def green(*resources):
    out = c_void_p()
    ok(lib.cuGreenCtxCreate(byref(out), description(*resources), 0, 1))
    return out
def context_of(which):
    out = c_void_p()
    ok(lib.cuCtxFromGreenCtx(byref(out), which))
    return out
def current():
    out = c_void_p()
    ok(lib.cuCtxGetCurrent(byref(out)))
    return out.value
def green_of(stream):
    out = c_void_p(99)
    ok(lib.cuStreamGetGreenCtx(stream, byref(out)))
    return out.value
"""


@pytest.fixture(scope="module")
def wide_host() -> Iterator[Host]:
    """A host whose device has multiprocessors to split."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        host = make_host(Path(name), threads=16)
        yield host
        end_host(host)


def test_splitting(wide_host: Host, transport: str) -> None:
    wide_host.run_python(
        transport,
        PRELUDE
        + """
whole = device_resource()
count = c_int()
ok(lib.cuDeviceGetAttribute(byref(count), 16, 0))
same(whole.sms, count.value)
assert whole.least >= 1 and whole.alignment >= 1  # the whole itself need not be aligned
groups, rest = split(whole, 2, whole.least)
same(len(groups), 2)
assert all(each.sms >= whole.least and each.sms % whole.alignment == 0 for each in groups)
same(sum(each.sms for each in groups) + rest.sms, whole.sms)
number = c_uint(0)
ok(lib.cuDevSmResourceSplitByCount(None, byref(number), byref(whole), None, 0, whole.least))
assert number.value >= 2
few = c_uint(100)
made = (Resource * 100)()
ok(lib.cuDevSmResourceSplitByCount(made, byref(few), byref(whole), None, 0, whole.least))
same(few.value, number.value)
# What nobody handed out, and what cuda.h forbids.
def refused(resource, wanted, least=None):
    some = c_uint(2)
    result = lib.cuDevSmResourceSplitByCount(
        (Resource * 2)(), byref(some), byref(resource), None, 0,
        whole.least if least is None else least)
    same(result, wanted)
refused(Resource(), RESOURCE_TYPE)
some = c_uint(2)
assert lib.cuDevSmResourceSplitByCount(None, byref(some), byref(whole), None, 0, whole.sms + 1) != 0
made_up = Resource(type=SM, sms=64)
out = c_void_p()
some = c_uint(2)
assert lib.cuDevSmResourceSplitByCount(None, byref(some), byref(made_up), None, 0, 8) != 0
assert lib.cuDevResourceGenerateDesc(byref(out), byref(made_up), 1) != 0
same(lib.cuDevResourceGenerateDesc(None, byref(whole), 1), INVALID_VALUE)
same(lib.cuDeviceGetDevResource(99, byref(whole), SM), INVALID_DEVICE)
same(lib.cuDeviceGetDevResource(0, None, SM), INVALID_VALUE)
same(lib.cuDeviceGetDevResource(0, byref(whole), 7), RESOURCE_TYPE)
# Parts of different splits do not go together, where a driver can tell them apart.
one, _ = split(whole, 2, whole.least)
two, _ = split(whole, 2, whole.least)
mixed = (Resource * 2)(one[0], two[1])
assert lib.cuDevResourceGenerateDesc(byref(out), mixed, 2) in (0, RESOURCE_CONFIGURATION)
""",
    )


def test_working_in_green_contexts(wide_host: Host, transport: str) -> None:
    """Modules, memory and events are the primary context's; streams are the green context's own."""
    wide_host.run_python(
        transport,
        PRELUDE
        + """
whole = device_resource()
groups, rest = split(whole, 2, whole.least)
module = load_module(driver)
fill = get_function(driver, module, "fill")
memory = driver.alloc(4096)
contexts = [green(each) for each in groups]
assert contexts[0].value != contexts[1].value
ids = set()
for which, resource in zip(contexts, groups):
    own = Resource()
    ok(lib.cuGreenCtxGetDevResource(which, byref(own), SM))
    same(own.sms, resource.sms)
    ok(lib.cuCtxGetDevResource(context_of(which), byref(own), SM))
    same(own.sms, resource.sms)
    number = c_uint64()
    ok(lib.cuGreenCtxGetId(which, byref(number)))
    ids.add(number.value)
same(len(ids), 2)
primary = current()
same(green_of(None), None)
for value, which in enumerate(contexts, 1):
    stream, event = c_void_p(), c_void_p()
    ok(lib.cuGreenCtxStreamCreate(byref(stream), which, 1, 0))
    same(green_of(stream), which.value)
    owner, back = c_void_p(), c_void_p()
    ok(lib.cuStreamGetCtx_v2(stream, byref(owner), byref(back)))
    same((owner.value, back.value), (primary, which.value))
    arguments = fill_parameters(memory, 1024, value)
    ok(launch(driver, fill, (4, 1, 1), (256, 1, 1), arguments, stream=stream))
    ok(lib.cuEventCreate(byref(event), 0))
    ok(lib.cuEventRecord(event, stream))
    ok(lib.cuEventSynchronize(event))
    same(driver.download(memory, 4096), int(value).to_bytes(4, "little") * 1024)
    ok(lib.cuGreenCtxRecordEvent(which, event))
    ok(lib.cuEventSynchronize(event))
    ok(lib.cuGreenCtxWaitEvent(which, event))
    ok(lib.cuStreamSynchronize(stream))
    # Current: what is made is the primary context's, the default stream is its own.
    ok(lib.cuCtxPushCurrent_v2(context_of(which)))
    assert current() != primary
    same(green_of(None), which.value)
    more = driver.alloc(4096)
    ok(launch(driver, fill, (4, 1, 1), (256, 1, 1), fill_parameters(more, 1024, value + 10)))
    driver.synchronize()
    same(driver.download(more, 4096), int(value + 10).to_bytes(4, "little") * 1024)
    inner = get_function(driver, load_module(driver), "fill")
    made = driver.stream()
    same(green_of(made), which.value)
    popped = c_void_p()
    ok(lib.cuCtxPopCurrent_v2(byref(popped)))
    same(popped.value, context_of(which).value)
    same(current(), primary)
    ok(launch(driver, inner, (4, 1, 1), (256, 1, 1), fill_parameters(more, 1024, value + 20)))
    driver.synchronize()
    same(driver.download(more, 4096), int(value + 20).to_bytes(4, "little") * 1024)
    driver.free(more)
    ok(lib.cuStreamDestroy_v2(made))
    ok(lib.cuStreamDestroy_v2(stream))
    ok(lib.cuEventDestroy_v2(event))
for which in contexts:
    ok(lib.cuGreenCtxDestroy(which))
    assert lib.cuGreenCtxDestroy(which) != 0
ok(launch(driver, fill, (4, 1, 1), (256, 1, 1), fill_parameters(memory, 1024, 77)))
same(driver.download(memory, 4096), (77).to_bytes(4, "little") * 1024)
""",
    )


def test_errors_and_ends(wide_host: Host, transport: str) -> None:
    wide_host.run_python(
        transport,
        PRELUDE
        + """
whole = device_resource()
flags, active = c_uint(), c_int()
which = green(whole)
out, number = c_void_p(), c_uint64()
same(lib.cuGreenCtxCreate(byref(out), description(whole), 0, 0), INVALID_VALUE)
same(lib.cuGreenCtxCreate(byref(out), description(whole), 99, 1), INVALID_DEVICE)
same(lib.cuGreenCtxCreate(None, description(whole), 0, 1), INVALID_VALUE)
same(lib.cuGreenCtxStreamCreate(byref(out), which, 0, 0), INVALID_VALUE)
same(lib.cuCtxDestroy_v2(context_of(which)), INVALID_CONTEXT)
# It holds the primary context; its end lets it go.
ok(lib.cuDevicePrimaryCtxRelease_v2(0))
ok(lib.cuDevicePrimaryCtxGetState(0, byref(flags), byref(active)))
same(active.value, 1)
ok(lib.cuCtxSetCurrent(context_of(which)))
ok(lib.cuGreenCtxGetId(None, byref(number)))
memory = driver.alloc(512)
converted = context_of(which)
ok(lib.cuGreenCtxDestroy(which))
same(lib.cuMemAlloc_v2(byref(c_uint64()), c_size_t(512)), IS_DESTROYED)
same(lib.cuStreamSynchronize(None), IS_DESTROYED)
same(lib.cuCtxFromGreenCtx(byref(out), which), IS_DESTROYED)
ok(lib.cuDevicePrimaryCtxGetState(0, byref(flags), byref(active)))
same(active.value, 0)
ok(lib.cuDevicePrimaryCtxRetain(byref(out), 0))
ok(lib.cuCtxSetCurrent(out))
for _ in range(50):
    which = green(whole)
    stream = c_void_p()
    ok(lib.cuGreenCtxStreamCreate(byref(stream), which, 1, 0))
    ok(lib.cuStreamDestroy_v2(stream))
    ok(lib.cuGreenCtxDestroy(which))
driver.alloc(512)
""",
    )
