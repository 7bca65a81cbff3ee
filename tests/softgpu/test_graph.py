"""Graphs, made node by node and by capturing streams."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import pytest

from tests.softgpu.driver import COUNTER, INVALID_VALUE, Driver, pointers
from tests.softgpu.test_module import counter, global_of
from tests.softgpu.test_stream import HOST_FUNCTION, stream, wait, word, write

GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
UNSUPPORTED, INVALIDATED, UNJOINED, UNMATCHED, IMPLICIT, CAPTURED_EVENT = (
    900,
    901,
    904,
    903,
    906,
    907,
)
KERNEL, MEMCPY, MEMSET, HOST, GRAPH, EMPTY = range(6)


class KernelParams(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2 of cuda.h."""

    _fields_ = [
        ("func", c_void_p),
        ("shape", c_uint * 7),
        ("params", c_void_p),
        ("extra", c_void_p),
        ("kern", c_void_p),
        ("ctx", c_void_p),
    ]


class MemsetParams(ctypes.Structure):
    """CUDA_MEMSET_NODE_PARAMS of cuda.h."""

    _fields_ = [
        ("dst", c_uint64),
        ("pitch", c_size_t),
        ("value", c_uint),
        ("element", c_uint),
        ("width", c_size_t),
        ("height", c_size_t),
    ]


def kernel_params(function: int, array: ctypes.Array[Any]) -> KernelParams:
    return KernelParams(function, (c_uint * 7)(1, 1, 1, 1, 1, 1, 0), ctypes.addressof(array))


def instantiate(driver: Driver, graph: int) -> int:
    return driver.handle("cuGraphInstantiateWithFlags", c_void_p(graph), c_uint64(0))


def begin(driver: Driver, on: int, mode: int = RELAXED) -> None:
    driver.cuStreamBeginCapture_v2(c_void_p(on), mode)


def end(driver: Driver, on: int) -> int:
    graph = c_void_p()
    driver.cuStreamEndCapture(c_void_p(on), byref(graph))
    return graph.value or 0


def nodes(driver: Driver, graph: int) -> list[int]:
    count = c_size_t()
    driver.cuGraphGetNodes(c_void_p(graph), None, byref(count))
    found = (c_void_p * count.value)()
    driver.cuGraphGetNodes(c_void_p(graph), found, byref(count))
    return [handle or 0 for handle in found]


def types(driver: Driver, graph: int) -> list[int]:
    result = []
    for node in nodes(driver, graph):
        kind = c_int()
        driver.cuGraphNodeGetType(c_void_p(node), byref(kind))
        result.append(kind.value)
    return result


def launch(driver: Driver, executable: int) -> None:
    driver.cuGraphLaunch(c_void_p(executable), c_void_p(0))
    driver.cuCtxSynchronize()


def test_nodes_run_in_the_order_of_their_dependencies(driver: Driver) -> None:
    graph = driver.handle("cuGraphCreate", c_uint(0))
    address = driver.allocate(16)
    first = MemsetParams(address, 0, 1, 4, 4, 1)
    second = MemsetParams(address + 4, 0, 2, 4, 1, 1)
    b = driver.handle(
        "cuGraphAddMemsetNode", c_void_p(graph), None, c_size_t(0), byref(second), None
    )
    a = driver.handle(
        "cuGraphAddMemsetNode", c_void_p(graph), None, c_size_t(0), byref(first), None
    )
    pair = ((c_void_p * 1)(a), (c_void_p * 1)(b))
    driver.cuGraphAddDependencies(c_void_p(graph), *pair, c_size_t(1))
    launch(driver, instantiate(driver, graph))
    assert driver.download(address, 16) == b"".join(n.to_bytes(4, "little") for n in (1, 2, 1, 1))
    driver.cuGraphAddDependencies(c_void_p(graph), pair[1], pair[0], c_size_t(1))
    executable = c_void_p()
    result = driver.result.cuGraphInstantiateWithFlags(
        byref(executable), c_void_p(graph), c_uint64(0)
    )
    assert result == INVALID_VALUE  # a cycle


def test_a_captured_kernel_runs_once_a_launch_and_can_be_changed(driver: Driver) -> None:
    module = driver.module(COUNTER)
    bump = driver.function(module, "bump")
    address, _ = global_of(driver, module)
    on = stream(driver)
    begin(driver, on)
    driver.launch(bump, 1, 1, c_uint(10), stream=on)
    graph = end(driver, on)
    assert counter(driver, address) == 5
    executable = instantiate(driver, graph)
    for _ in range(3):
        launch(driver, executable)
    assert counter(driver, address) == 35
    node = nodes(driver, graph)[0]
    params = KernelParams()
    driver.cuGraphKernelNodeGetParams_v2(c_void_p(node), byref(params))
    assert params.func == bump
    first = ctypes.cast(params.params, ctypes.POINTER(ctypes.POINTER(c_uint)))[0]
    assert first[0] == 10
    array = pointers(c_uint(1))
    changed = kernel_params(bump, array)
    driver.cuGraphExecKernelNodeSetParams_v2(c_void_p(executable), c_void_p(node), byref(changed))
    launch(driver, executable)
    assert counter(driver, address) == 36
    driver.cuGraphNodeSetEnabled(c_void_p(executable), c_void_p(node), c_uint(0))
    launch(driver, executable)
    assert counter(driver, address) == 36
    driver.cuGraphDestroy(c_void_p(graph))
    driver.cuGraphExecDestroy(c_void_p(executable))
    assert driver.result.cuGraphLaunch(c_void_p(executable), c_void_p(0)) == INVALID_VALUE


def test_capture_of_two_streams_joined_by_events(driver: Driver) -> None:
    first, second = stream(driver), stream(driver)
    fork, join = (driver.handle("cuEventCreate", c_uint(2)) for _ in range(2))
    address, value = word(driver)
    begin(driver, first)
    write(driver, first, address, 1)
    driver.cuEventRecord(c_void_p(fork), c_void_p(first))
    driver.cuStreamWaitEvent(c_void_p(second), c_void_p(fork), c_uint(0))
    status = c_int()
    driver.cuStreamIsCapturing(c_void_p(second), byref(status))
    assert status.value == 1
    write(driver, second, address + 4, 2)
    write(driver, first, address + 8, 3)
    driver.cuEventRecord(c_void_p(join), c_void_p(second))
    driver.cuStreamWaitEvent(c_void_p(first), c_void_p(join), c_uint(0))
    write(driver, first, address + 12, 4)
    graph = end(driver, first)
    driver.cuStreamIsCapturing(c_void_p(second), byref(status))
    assert (status.value, value.value) == (0, 0)
    assert len(nodes(driver, graph)) == 4
    count = c_size_t()
    driver.cuGraphGetEdges(c_void_p(graph), None, None, byref(count))
    assert count.value == 4  # a diamond
    launch(driver, instantiate(driver, graph))
    assert list((c_uint * 4).from_address(address)) == [1, 2, 3, 4]


def test_a_capture_that_is_not_joined_fails(driver: Driver) -> None:
    first, second = stream(driver), stream(driver)
    fork = driver.handle("cuEventCreate", c_uint(2))
    address, _ = word(driver)
    begin(driver, first)
    driver.cuEventRecord(c_void_p(fork), c_void_p(first))
    driver.cuStreamWaitEvent(c_void_p(second), c_void_p(fork), c_uint(0))
    write(driver, second, address, 2)
    graph = c_void_p(1)
    assert driver.result.cuStreamEndCapture(c_void_p(second), byref(graph)) == UNMATCHED
    assert driver.result.cuStreamEndCapture(c_void_p(first), byref(graph)) == UNJOINED
    assert graph.value is None
    write(driver, second, address, 5)  # both streams are free again
    driver.cuStreamSynchronize(c_void_p(second))


@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED])
def test_what_may_not_be_done_while_capturing(driver: Driver, mode: int) -> None:
    on = stream(driver)
    begin(driver, on, mode)
    out = c_uint64()
    allowed = driver.result.cuMemAlloc_v2(byref(out), c_size_t(16))
    assert allowed == (0 if mode == RELAXED else UNSUPPORTED)
    graph = c_void_p()
    ended = driver.result.cuStreamEndCapture(c_void_p(on), byref(graph))
    assert ended == (0 if mode == RELAXED else INVALIDATED)


def test_waiting_for_a_capturing_stream_ends_the_capture(driver: Driver) -> None:
    on = stream(driver)
    begin(driver, on)
    assert driver.result.cuStreamSynchronize(c_void_p(on)) == UNSUPPORTED
    graph = c_void_p()
    assert driver.result.cuStreamEndCapture(c_void_p(on), byref(graph)) == INVALIDATED


def test_the_legacy_stream_while_a_blocking_stream_is_captured(driver: Driver) -> None:
    address = driver.allocate(16)
    on = stream(driver)
    begin(driver, on)
    result = driver.result.cuMemsetD8Async(
        c_uint64(address), ctypes.c_ubyte(1), c_size_t(16), c_void_p(0)
    )
    assert result == IMPLICIT
    graph = c_void_p()
    assert driver.result.cuStreamEndCapture(c_void_p(on), byref(graph)) == INVALIDATED
    free = stream(driver, 1)
    begin(driver, free)
    driver.cuMemsetD8Async(c_uint64(address), ctypes.c_ubyte(1), c_size_t(16), c_void_p(0))
    assert types(driver, end(driver, free)) == []


def test_a_captured_event_cannot_be_waited_for(driver: Driver) -> None:
    on = stream(driver)
    event = driver.handle("cuEventCreate", c_uint(0))
    begin(driver, on)
    driver.cuEventRecord(c_void_p(event), c_void_p(on))
    assert driver.result.cuEventSynchronize(c_void_p(event)) == CAPTURED_EVENT
    graph = c_void_p()
    assert driver.result.cuStreamEndCapture(c_void_p(on), byref(graph)) == INVALIDATED
    driver.cuEventRecord(c_void_p(event), c_void_p(on))
    driver.cuEventSynchronize(c_void_p(event))


def test_every_kind_of_node_is_captured(driver: Driver) -> None:
    module = driver.module(COUNTER)
    a, b = driver.allocate(64), driver.allocate(64)
    seen: list[object] = []
    function = HOST_FUNCTION(seen.append)
    on = stream(driver)
    begin(driver, on)
    driver.launch(driver.function(module, "bump"), 1, 1, c_uint(1), stream=on)
    driver.cuMemcpyDtoDAsync_v2(c_uint64(a), c_uint64(b), c_size_t(64), c_void_p(on))
    driver.cuMemsetD8Async(c_uint64(a), ctypes.c_ubyte(9), c_size_t(8), c_void_p(on))
    driver.cuLaunchHostFunc(c_void_p(on), function, c_void_p(4))
    status, identity, graph_so_far = c_int(), c_uint64(), c_void_p()
    dependencies, count = c_void_p(), c_size_t()
    driver.cuStreamGetCaptureInfo_v2(
        c_void_p(on),
        byref(status),
        byref(identity),
        byref(graph_so_far),
        byref(dependencies),
        byref(count),
    )
    assert (status.value, count.value) == (1, 1)
    graph = end(driver, on)
    assert graph == graph_so_far.value
    assert types(driver, graph) == [KERNEL, MEMCPY, MEMSET, HOST]
    clone = driver.handle("cuGraphClone", c_void_p(graph))
    driver.cuGraphDestroy(c_void_p(graph))
    launch(driver, instantiate(driver, clone))
    assert seen == [4]
    assert driver.download(a, 10) == b"\x09" * 8 + bytes(2)


def test_updating_an_executable_graph(driver: Driver) -> None:
    address = driver.allocate(16)

    def make(value: int, extra: bool = False) -> int:
        graph = driver.handle("cuGraphCreate", c_uint(0))
        params = MemsetParams(address, 0, value, 4, 1, 1)
        driver.handle(
            "cuGraphAddMemsetNode", c_void_p(graph), None, c_size_t(0), byref(params), None
        )
        if extra:
            driver.handle("cuGraphAddEmptyNode", c_void_p(graph), None, c_size_t(0))
        return graph

    executable = instantiate(driver, make(1))
    info = (c_uint64 * 3)()
    driver.cuGraphExecUpdate_v2(c_void_p(executable), c_void_p(make(2)), info)
    launch(driver, executable)
    assert driver.download(address, 4)[0] == 2
    result = driver.result.cuGraphExecUpdate_v2(
        c_void_p(executable), c_void_p(make(3, extra=True)), info
    )
    assert (result, info[0] & 0xFFFFFFFF) == (910, 2)
    launch(driver, executable)
    assert driver.download(address, 4)[0] == 2


class AllocationParams(ctypes.Structure):
    """CUDA_MEM_ALLOC_NODE_PARAMS of cuda.h, with its CUmemPoolProps."""

    _fields_ = [
        ("kind", c_int),
        ("handles", c_int),
        ("location", c_int * 2),
        ("others", c_uint64 * 9),
        ("access", c_void_p),
        ("accesses", c_size_t),
        ("size", c_size_t),
        ("address", c_uint64),
    ]


def memory_of_graphs(driver: Driver) -> int:
    value = c_uint64()
    driver.cuDeviceGetGraphMemAttribute(0, 0, byref(value))
    return value.value


def test_memory_of_a_destroyed_graph_is_gone_when_its_launch_is_done(driver: Driver) -> None:
    gate, value = word(driver)
    on = stream(driver, 1)
    graph = driver.handle("cuGraphCreate", 0)
    for _ in range(5000):  # taking them back takes a moment
        params = AllocationParams(1, 0, (c_int * 2)(1, 0), size=512)
        driver.cuGraphAddMemAllocNode(
            byref(c_void_p()), c_void_p(graph), None, c_size_t(0), byref(params)
        )
    executable = instantiate(driver, graph)
    wait(driver, on, gate, 1)
    driver.cuGraphLaunch(c_void_p(executable), c_void_p(on))
    driver.cuGraphExecDestroy(c_void_p(executable))
    driver.cuGraphDestroy(c_void_p(graph))
    assert memory_of_graphs(driver) > 0
    value.value = 1
    driver.cuStreamSynchronize(c_void_p(on))
    assert memory_of_graphs(driver) == 0
