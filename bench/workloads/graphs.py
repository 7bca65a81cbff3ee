"""CUDA graphs: launching one of fifty kernels, and capturing and instantiating it."""

from __future__ import annotations

from ctypes import byref, c_uint, c_uint64, c_void_p

from gpupool.bench.workloads.base import GPU, MODULE, Result, Running, Setting, Workload
from gpupool.bench.workloads.cuda import ready
from gpupool.bench.workloads.launch import Counted

_NODES = 50
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


class Captured:
    """Fifty counted launches in a graph."""

    def __init__(self, counted: Counted, stream: c_void_p) -> None:
        self._driver = driver = counted.driver
        self._graph, self.executable = c_void_p(), c_void_p()
        driver.call("cuStreamBeginCapture_v2", stream, c_uint(_RELAXED))
        driver.loops.run(
            *("bench_launch", driver.address("cuLaunchKernel"), counted.kernel),
            *(stream, counted.arguments, _NODES),
        )
        driver.call("cuStreamEndCapture", stream, byref(self._graph))
        driver.call("cuGraphInstantiateWithFlags", byref(self.executable), self._graph, c_uint64(0))

    def close(self) -> None:
        """Destroys both forms of the graph."""
        self._driver.call("cuGraphExecDestroy", self.executable)
        self._driver.call("cuGraphDestroy", self._graph)


def _launch(setting: Setting) -> Running:
    driver = ready()
    counted, stream = Counted(driver), driver.stream()
    graph = Captured(counted, stream)
    count = 2 if setting.small else 20
    launch = driver.address("cuGraphLaunch")

    def step() -> None:
        counted.expected += count * _NODES
        driver.loops.run("bench_repeat", launch, graph.executable, stream, None, None, count)

    def close() -> None:
        graph.close()
        driver.call("cuStreamDestroy_v2", stream)
        counted.close()

    return Running(step, driver.wait, counted.result, close, operations=count)


def _capture(_: Setting) -> Running:
    driver = ready()
    counted, stream = Counted(driver), driver.stream()

    def step() -> None:
        Captured(counted, stream).close()

    def result() -> Result:
        graph = Captured(counted, stream)
        driver.call("cuGraphLaunch", graph.executable, stream)
        counted.expected += _NODES
        driver.wait()
        graph.close()
        return counted.result()

    def close() -> None:
        driver.call("cuStreamDestroy_v2", stream)
        counted.close()

    return Running(step, driver.wait, result, close)


WORKLOADS = (
    Workload("graph_launch_50", GPU, _launch),
    Workload("graph_capture_50", MODULE, _capture),
)
