"""Events and streams: record, query, elapsed time, synchronisation of what is done already."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_float

from gpupool.bench.workloads.base import (
    LAUNCH,
    QUERY,
    Result,
    Running,
    Setting,
    Workload,
    WrongResultError,
)
from gpupool.bench.workloads.cuda import Driver, ready
from gpupool.bench.workloads.launch import Counted

_DONE, _NOT_READY = 0, 600


class Timeline:
    """A stream with two events around work that is done."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.stream, self.first, self.last = driver.stream(), driver.event(), driver.event()
        self.counted = Counted(driver)
        self.mark()

    def mark(self) -> None:
        """Records both events around ten launches and waits."""
        driver = self.driver
        driver.call("cuEventRecord", self.first, self.stream)
        driver.loops.run(
            *("bench_launch", driver.address("cuLaunchKernel"), self.counted.kernel),
            *(self.stream, self.counted.arguments, 10),
        )
        self.counted.expected += 10
        driver.call("cuEventRecord", self.last, self.stream)
        driver.call("cuEventSynchronize", self.last)

    def result(self) -> Result:
        """Events still tell the truth: done after a wait, in order, and work was not lost."""
        self.driver.wait()
        self.mark()
        if self.driver.library.cuEventQuery(self.last) != _DONE:
            raise WrongResultError("an event that was waited for is not ready")
        if not 0 < self.driver.elapsed_ms(self.first, self.last) < 60e3:
            raise WrongResultError("the time between the events is impossible")
        return self.counted.result()

    def close(self) -> None:
        """Gives back what it holds."""
        for name, handle in (
            ("cuEventDestroy_v2", self.first),
            ("cuEventDestroy_v2", self.last),
            ("cuStreamDestroy_v2", self.stream),
        ):
            self.driver.call(name, handle)
        self.counted.close()


def _repeated(
    function: str, words: Callable[[Timeline], tuple[object, ...]]
) -> Callable[[Setting], Running]:
    """A workload that makes one call again and again."""

    def make(setting: Setting) -> Running:
        driver = ready()
        timeline = Timeline(driver)
        count = 100 if setting.small else 1000
        given = [*words(timeline), None, None, None, None][:4]
        call = driver.address(function)

        def step() -> None:
            driver.loops.run("bench_repeat", call, *given, count)

        return Running(step, driver.wait, timeline.result, timeline.close, operations=count)

    return make


def _query_not_ready(setting: Setting) -> Running:
    """Record and query: what PyTorch's caching allocator does with every event it waits on."""
    driver = ready()
    timeline = Timeline(driver)
    count = 20 if setting.small else 500
    record, query = driver.address("cuEventRecord"), driver.address("cuEventQuery")

    def step() -> None:
        driver.loops.run(
            *("bench_repeat_pair", record, timeline.last, timeline.stream),
            *(query, timeline.last, None, count),
        )

    return Running(step, driver.wait, timeline.result, timeline.close, operations=count)


def _elapsed(setting: Setting) -> Running:
    driver = ready()
    timeline = Timeline(driver)
    count = 100 if setting.small else 1000
    took = c_float()
    call = driver.address("cuEventElapsedTime")

    def step() -> None:
        driver.loops.run(
            "bench_repeat", call, byref(took), timeline.first, timeline.last, None, count
        )

    def result() -> Result:
        if not 0 < took.value < 60e3:
            raise WrongResultError(f"{took.value} ms between two events")
        return timeline.result()

    return Running(step, driver.wait, result, timeline.close, operations=count)


def _elapsed_of_new(setting: Setting) -> Running:
    """Events around a launch, waited for and read: how programs time their kernels."""
    driver = ready()
    timeline = Timeline(driver)
    count = 1 if setting.small else 20
    took = ctypes.c_float()

    def step() -> None:
        for _ in range(count):
            timeline.mark()
            driver.call("cuEventElapsedTime", byref(took), timeline.first, timeline.last)

    return Running(step, driver.wait, timeline.result, timeline.close, operations=count)


WORKLOADS = (
    Workload("event_record", LAUNCH, _repeated("cuEventRecord", lambda t: (t.last, t.stream))),
    Workload("event_query", QUERY, _repeated("cuEventQuery", lambda t: (t.last,))),
    Workload("event_record_query", QUERY, _query_not_ready),
    Workload("event_elapsed", QUERY, _elapsed),
    Workload("event_time_of_kernels", QUERY, _elapsed_of_new),
    Workload("stream_query", QUERY, _repeated("cuStreamQuery", lambda t: (t.stream,))),
    Workload(
        "stream_synchronize_idle", QUERY, _repeated("cuStreamSynchronize", lambda t: (t.stream,))
    ),
    Workload("context_synchronize_idle", QUERY, _repeated("cuCtxSynchronize", lambda _: ())),
)
