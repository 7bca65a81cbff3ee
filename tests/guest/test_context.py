"""Contexts, held to what driver 580 answers on an H100 (measured call by call)."""

from __future__ import annotations

from tests.conftest import Host

PRELUDE = """
import ctypes, threading
from ctypes import byref, c_int, c_uint, c_size_t, c_void_p, c_ulonglong
driver = ctypes.CDLL("libcuda.so.1")
INVALID_VALUE, INVALID_DEVICE, INVALID_CONTEXT, IS_DESTROYED = 1, 101, 201, 709
def same(got, wanted):
    assert got == wanted, f"got {got}, the driver answers {wanted}"
def current():
    context = c_void_p(5)
    same(driver.cuCtxGetCurrent(byref(context)), 0)
    return context.value
def state(device=0):
    flags, active = c_uint(99), c_int(99)
    result = driver.cuDevicePrimaryCtxGetState(device, byref(flags), byref(active))
    return (flags.value, active.value) if result == 0 else result
def flags():
    value = c_uint(99)
    same(driver.cuCtxGetFlags(byref(value)), 0)
    return value.value
def limit(which):
    value = c_size_t(77)
    result = driver.cuCtxGetLimit(byref(value), which)
    return value.value if result == 0 else -result
def context_id(context):
    value = c_ulonglong()
    same(driver.cuCtxGetId(context, byref(value)), 0)
    return value.value
def retain():
    context = c_void_p()
    same(driver.cuDevicePrimaryCtxRetain(byref(context), 0), 0)
    return context
def create(flags=0):
    context = c_void_p()
    same(driver.cuCtxCreate_v2(byref(context), flags, 0), 0)
    return context
out, number, memory = c_void_p(5), c_int(77), c_void_p()
same(driver.cuInit(0), 0)
"""


def test_without_a_context(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
same(current(), None)
same(driver.cuCtxGetDevice(byref(number)), INVALID_CONTEXT)
same(driver.cuCtxSynchronize(), INVALID_CONTEXT)
same(driver.cuStreamSynchronize(None), INVALID_CONTEXT)
same(driver.cuCtxPopCurrent_v2(byref(out)), INVALID_CONTEXT)
same(driver.cuCtxSetCurrent(None), 0)
same(driver.cuCtxPushCurrent_v2(None), INVALID_VALUE)
same(driver.cuCtxGetApiVersion(None, byref(number)), INVALID_CONTEXT)
same(driver.cuCtxGetId(None, byref(c_ulonglong())), INVALID_CONTEXT)
same(driver.cuMemAlloc_v2(byref(memory), c_size_t(512)), INVALID_CONTEXT)
same(state(), (0, 0))
same(state(9), INVALID_DEVICE)
same(driver.cuDevicePrimaryCtxRelease_v2(0), INVALID_CONTEXT)
same(driver.cuDevicePrimaryCtxReset_v2(0), 0)
""",
    )


def test_flags_of_a_primary_context(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
same(driver.cuDevicePrimaryCtxSetFlags_v2(0, 0x1000), INVALID_VALUE)
same(driver.cuDevicePrimaryCtxSetFlags_v2(0, 3), INVALID_VALUE)
same(driver.cuDevicePrimaryCtxSetFlags_v2(0, 8), INVALID_VALUE)
same(driver.cuDevicePrimaryCtxSetFlags_v2(0, 4), 0)
same(state(), (4, 0))
same(driver.cuDevicePrimaryCtxSetFlags_v2(0, 0), 0)
context = retain()
same(state(), (0, 1))
same(current(), None)
same(driver.cuCtxSetCurrent(context), 0)
same(flags(), 8)
same(driver.cuDevicePrimaryCtxSetFlags_v2(0, 4), 0)
same((state(), flags()), ((4, 1), 12))
same(driver.cuCtxSetFlags(2), 0)
same((state(), flags()), ((4, 1), 10))
same(driver.cuCtxSetFlags(3), INVALID_VALUE)
same(driver.cuCtxSetFlags(0x1000), INVALID_VALUE)
same(driver.cuDevicePrimaryCtxRelease_v2(0), 0)
same(state(), (0, 0))
""",
    )


def test_a_released_primary_context(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
context = retain()
same(driver.cuCtxSetCurrent(context), 0)
first_id, stack = context_id(context), limit(0)
same(driver.cuCtxSetLimit(0, c_size_t(stack * 2)), 0)
assert limit(0) >= stack * 2
same(driver.cuMemAlloc_v2(byref(memory), c_size_t(512)), 0)
same(driver.cuDevicePrimaryCtxRelease_v2(0), 0)
same(state(), (0, 0))
same(current(), context.value)
same(driver.cuCtxGetDevice(byref(number)), 0)
same(driver.cuCtxSynchronize(), IS_DESTROYED)
same(driver.cuStreamSynchronize(None), IS_DESTROYED)
same(driver.cuCtxGetApiVersion(context, byref(number)), INVALID_CONTEXT)
same(driver.cuCtxGetId(context, byref(c_ulonglong())), IS_DESTROYED)
same(driver.cuCtxSetCurrent(context), 0)
same(driver.cuMemAlloc_v2(byref(out), c_size_t(512)), IS_DESTROYED)
same(driver.cuMemFree_v2(memory), IS_DESTROYED)
same(limit(0), -IS_DESTROYED)
same(driver.cuDevicePrimaryCtxRelease_v2(0), INVALID_CONTEXT)
same(retain().value, context.value)
assert context_id(context) != first_id
same(limit(0), stack)
same(driver.cuMemFree_v2(memory), INVALID_VALUE)
""",
    )


def test_reset_keeps_the_count_of_retains(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
context = retain()
retain()
same(driver.cuCtxSetCurrent(context), 0)
same(driver.cuMemAlloc_v2(byref(memory), c_size_t(512)), 0)
same(driver.cuDevicePrimaryCtxReset_v2(0), 0)
same(state(), (0, 0))
same(current(), context.value)
same(driver.cuMemFree_v2(memory), IS_DESTROYED)
retain()
same(state(), (0, 1))
same(driver.cuMemFree_v2(memory), INVALID_VALUE)
steps = []
for _ in range(4):
    steps.append((driver.cuDevicePrimaryCtxRelease_v2(0), state()))
same(steps, [(0, (0, 1)), (0, (0, 1)), (0, (0, 0)), (INVALID_CONTEXT, (0, 0))])
""",
    )


def test_created_contexts_stack(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
same(driver.cuCtxDestroy_v2(None), INVALID_VALUE)
same(driver.cuCtxDestroy_v2(retain()), INVALID_CONTEXT)
same(driver.cuCtxCreate_v2(byref(out), 0x1000, 0), INVALID_VALUE)
same(driver.cuCtxCreate_v2(byref(out), 0, 9), INVALID_DEVICE)
first = create(4)
same((current(), flags()), (first.value, 4))
same(driver.cuCtxGetApiVersion(first, byref(number)), 0)
same(number.value, 3020)
second = create()
same(driver.cuCtxPushCurrent_v2(first), 0)
same(driver.cuCtxPushCurrent_v2(second), 0)
same(driver.cuCtxDestroy_v2(second), 0)
same(current(), first.value)
same(driver.cuCtxPopCurrent_v2(byref(out)), 0)
same(out.value, first.value)
same(current(), second.value)  # still there, below
same(driver.cuCtxSynchronize(), IS_DESTROYED)
same(driver.cuCtxDestroy_v2(second), IS_DESTROYED)
same(driver.cuCtxPushCurrent_v2(second), 0)
""",
    )


def test_a_context_destroyed_by_another_thread(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
other = create()
context = create()
stream = c_void_p()
same(driver.cuStreamCreate(byref(stream), 0), 0)
answers = []
def elsewhere():
    owner, event = c_void_p(), c_void_p()
    answers.append(driver.cuStreamSynchronize(stream))  # needs no current context
    answers.append(driver.cuStreamGetCtx(stream, byref(owner)))
    answers.append(owner.value == context.value)
    answers.append(driver.cuCtxSetCurrent(other))
    answers.append(driver.cuStreamSynchronize(stream))
    answers.append(driver.cuEventCreate(byref(event), 0))
    answers.append(driver.cuEventRecord(event, stream))
    answers.append(driver.cuCtxDestroy_v2(context))
thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
same(answers, [0, 0, True, 0, 0, 0, 400, 0])
same(current(), context.value)
same(driver.cuCtxGetDevice(byref(number)), 0)
same(driver.cuCtxSynchronize(), IS_DESTROYED)
same(driver.cuCtxGetApiVersion(None, byref(number)), IS_DESTROYED)
same(driver.cuCtxGetApiVersion(context, byref(number)), INVALID_CONTEXT)
same(driver.cuMemAlloc_v2(byref(memory), c_size_t(512)), IS_DESTROYED)
same(driver.cuStreamSynchronize(None), IS_DESTROYED)
same(driver.cuCtxSetCurrent(context), 0)
same(driver.cuCtxPopCurrent_v2(byref(out)), 0)
same(out.value, context.value)
same(current(), other.value)
""",
    )


def test_many_contexts_and_threads_leave_nothing(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
for _ in range(150):  # more than live contexts a session may have
    same(driver.cuCtxDestroy_v2(create()), 0)
context = retain()
failures = []
def work():
    result = driver.cuCtxSetCurrent(context) or driver.cuStreamSynchronize(c_void_p(2))
    there = c_void_p()
    result = result or driver.cuMemAlloc_v2(byref(there), c_size_t(64))
    result = result or driver.cuMemFree_v2(there)
    if result:
        failures.append(result)
for _ in range(150):  # 1200 threads one after the other: more than may wait at one time
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
assert not failures, failures
""",
    )


def test_limits(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
same(driver.cuCtxSetCurrent(retain()), 0)
assert limit(0) > 0
same(limit(10), -INVALID_VALUE)
same(driver.cuCtxSetLimit(99, c_size_t(1)), INVALID_VALUE)
same(driver.cuCtxSetLimit(0, c_size_t(4096)), 0)
same(limit(0), 4096)
same(driver.cuCtxGetCacheConfig(byref(number)), 0)
same(driver.cuCtxSetCacheConfig(1), 0)
same(driver.cuCtxGetCacheConfig(byref(number)), 0)
same(number.value, 1)
same(driver.cuCtxSetCacheConfig(77), INVALID_VALUE)
least, greatest = c_int(9), c_int(9)
same(driver.cuCtxGetStreamPriorityRange(byref(least), byref(greatest)), 0)
assert least.value >= greatest.value
""",
    )


def test_a_capture_ends_when_its_context_is_waited_for(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
UNSUPPORTED, INVALIDATED = 900, 901
same(driver.cuCtxSetCurrent(retain()), 0)
stream, graph = c_void_p(), c_void_p()
same(driver.cuStreamCreate(byref(stream), 0), 0)
same(driver.cuStreamBeginCapture_v2(stream, 2), 0)
same(driver.cuCtxSynchronize(), UNSUPPORTED)
same(driver.cuStreamEndCapture(stream, byref(graph)), INVALIDATED)
same(driver.cuCtxSynchronize(), 0)
""",
    )


def test_a_reset_takes_everything_of_the_context_along(host: Host, transport: str) -> None:
    """Arrays, executable graphs and linker states; the next retain starts anew."""
    host.run_python(
        transport,
        PRELUDE
        + """
class Array(ctypes.Structure):
    _fields_ = [("width", c_size_t), ("height", c_size_t), ("format", c_uint), ("channels", c_uint)]
class Array3D(ctypes.Structure):
    _fields_ = [("width", c_size_t), ("height", c_size_t), ("depth", c_size_t), ("format", c_uint),
                ("channels", c_uint), ("flags", c_uint)]
NOT_SUPPORTED = 801
def make():
    array, mipmapped, graph, executable, linker = [c_void_p() for _ in range(5)]
    same(driver.cuArrayCreate_v2(byref(array), byref(Array(64, 64, 0x20, 1))), 0)
    shape = Array3D(64, 64, 0, 0x20, 1, 0)
    assert driver.cuMipmappedArrayCreate(byref(mipmapped), byref(shape), 2) in (0, NOT_SUPPORTED)
    same(driver.cuGraphCreate(byref(graph), 0), 0)
    same(driver.cuGraphAddEmptyNode(byref(c_void_p()), graph, None, c_size_t(0)), 0)
    same(driver.cuGraphInstantiateWithFlags(byref(executable), graph, c_ulonglong(0)), 0)
    same(driver.cuLinkCreate_v2(0, None, None, byref(linker)), 0)
    return array, mipmapped, executable, linker
def free(objects):
    array, mipmapped, executable, linker = objects
    ended = driver.cuArrayDestroy(array)
    if mipmapped.value:
        same(driver.cuMipmappedArrayDestroy(mipmapped) != 0, ended != 0)
    return [ended, driver.cuGraphExecDestroy(executable), driver.cuLinkDestroy(linker)]
for _ in range(20):
    context = retain()
    same(driver.cuCtxSetCurrent(context), 0)
    objects = make()
    same(driver.cuDevicePrimaryCtxReset_v2(0), 0)
    same(driver.cuDevicePrimaryCtxRelease_v2(0), 0)
    context = retain()
    same(driver.cuCtxSetCurrent(context), 0)
    ended = free(objects)
    assert 0 not in ended, ended
    same(free(make()), [0, 0, 0])
    same(driver.cuDevicePrimaryCtxRelease_v2(0), 0)
# A created context takes its own along and leaves those of others.
one = create()
kept = make()
two = create()
gone = make()
same(driver.cuCtxDestroy_v2(two), 0)
same(driver.cuCtxSetCurrent(one), 0)
ended = free(gone)
assert 0 not in ended, ended
same(free(kept), [0, 0, 0])
""",
    )


def test_a_context_destroyed_under_a_wait_does_not_hang_it(host: Host, transport: str) -> None:
    """Threads wait for their streams while another destroys the context: each wait ends."""
    host.run_python(
        transport,
        PRELUDE
        + """
for _ in range(10):
    context = create()
    ended, started = [], threading.Barrier(5)
    def work():
        driver.cuCtxSetCurrent(context)
        stream = c_void_p()
        event = c_void_p()
        same(driver.cuStreamCreate(byref(stream), 1), 0)
        same(driver.cuEventCreate(byref(event), 2), 0)
        started.wait()
        result = 0
        while result == 0:
            result = driver.cuEventRecord(event, stream)
            if result == 0:
                result = driver.cuStreamSynchronize(stream)
        ended.append(result)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads: each.start()
    started.wait()
    same(driver.cuCtxDestroy_v2(context), 0)
    for each in threads: each.join(20)
    assert len(ended) == 4, ended
""",
    )


def test_every_way_to_make_a_context(host: Host, transport: str) -> None:
    """All four create functions, attaching, and what cannot be had: affinity without MPS, CIG."""
    host.run_python(
        transport,
        PRELUDE
        + """
NOT_SUPPORTED, AFFINITY = 801, 224
made = []
for call in (
    lambda: driver.cuCtxCreate(byref(out), 0, 0),
    lambda: driver.cuCtxCreate_v2(byref(out), 1, 0),
    lambda: driver.cuCtxCreate_v3(byref(out), None, 0, 2, 0),
    lambda: driver.cuCtxCreate_v4(byref(out), None, 4, 0),
):
    same(call(), 0)
    same(current(), out.value)
    made.append(c_void_p(out.value))
same(len({each.value for each in made}), 4)
same(len({context_id(each) for each in made}), 4)
same(flags(), 4)
affinity = (c_uint * 2)(0, 8)
same(driver.cuCtxCreate_v3(byref(out), affinity, 1, 0, 0), AFFINITY)
parameters = (c_void_p * 3)(None, None, ctypes.addressof(affinity))
same(driver.cuCtxCreate_v4(byref(out), parameters, 0, 0), NOT_SUPPORTED)
same(driver.cuCtxGetExecAffinity(affinity, 0), 0)
assert affinity[1] > 0
same(driver.cuCtxGetExecAffinity(affinity, 1), AFFINITY)
same(driver.cuCtxSetFlags(1), 0)
same(flags() & 7, 1)
same(driver.cuCtxSetFlags(3), INVALID_VALUE)
# Attached twice: destroyed by the last detach.
same(driver.cuCtxAttach(byref(out), 0), 0)
same(out.value, current())
same(driver.cuCtxAttach(byref(out), 1), INVALID_VALUE)
same(driver.cuCtxDetach(out), 0)
same(driver.cuCtxSynchronize(), 0)
same(driver.cuCtxDetach(out), 0)
same(current(), made[2].value)
same(driver.cuCtxPushCurrent_v2(out), 0)
same(driver.cuCtxSynchronize(), IS_DESTROYED)
same(driver.cuCtxPopCurrent_v2(None), 0)
for context in reversed(made[:3]):
    same(driver.cuCtxDestroy(context), 0)
same(current(), None)
""",
    )


def test_a_floating_context_serves_one_thread_after_another(host: Host, transport: str) -> None:
    """Popped here and pushed there, with what was made in it."""
    host.run_python(
        transport,
        PRELUDE
        + """
context = create()
address = c_ulonglong()
same(driver.cuMemAlloc_v2(byref(address), c_size_t(4096)), 0)
same(driver.cuCtxPopCurrent_v2(byref(out)), 0)
same((out.value, current()), (context.value, None))
results = []
def work(value):
    buffer = (ctypes.c_ubyte * 4096)()
    results.append((
        current(), driver.cuCtxPushCurrent_v2(context),
        driver.cuMemsetD8_v2(address, value, c_size_t(4096)),
        driver.cuMemcpyDtoH_v2(buffer, address, c_size_t(4096)), set(buffer),
        driver.cuCtxPopCurrent_v2(byref(c_void_p())), current(),
    ))
for value in range(1, 6):
    thread = threading.Thread(target=work, args=(value,))
    thread.start()
    thread.join()
same(results, [(None, 0, 0, 0, {value}, 0, None) for value in range(1, 6)])
same(current(), None)
same(driver.cuCtxDestroy_v2(context), 0)
""",
    )


def test_events_of_whole_contexts(host: Host, transport: str) -> None:
    """cuCtxRecordEvent covers every stream of the context, cuCtxWaitEvent holds them back."""
    host.run_python(
        transport,
        PRELUDE
        + """
context = create()
address = c_ulonglong()
same(driver.cuMemAlloc_v2(byref(address), c_size_t(1 << 20)), 0)
streams = [c_void_p() for _ in range(4)]
event = c_void_p()
same(driver.cuEventCreate(byref(event), 2), 0)
for stream in streams:
    same(driver.cuStreamCreate(byref(stream), 1), 0)
    same(driver.cuMemsetD8Async(address, 7, c_size_t(1 << 20), stream), 0)
same(driver.cuCtxRecordEvent(context, event), 0)
same(driver.cuCtxWaitEvent(context, event), 0)
same(driver.cuEventSynchronize(event), 0)
for stream in streams:
    same(driver.cuStreamQuery(stream), 0)
same(driver.cuCtxRecordEvent(context, None), 400)
other = create()
same(driver.cuCtxRecordEvent(other, event), 400)
same(driver.cuCtxWaitEvent(other, event), 0)
same(driver.cuCtxSynchronize(), 0)
for each in (context, other):
    same(driver.cuCtxDestroy_v2(each), 0)
""",
    )
