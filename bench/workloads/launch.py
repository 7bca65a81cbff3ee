"""Launches: their rate from one and from eight threads, and launches that are waited for."""

from __future__ import annotations

import ctypes
from ctypes import c_uint64, c_void_p

from gpupool.bench.workloads.base import (
    GPU,
    ITEM,
    LAUNCH,
    Result,
    Running,
    Setting,
    Workload,
    WrongResultError,
    digest,
)
from gpupool.bench.workloads.cuda import Driver, arguments, ready

_THREADS = 8


class Counted:
    """A counter in device memory and the kernel that adds to it: every launch is accounted for."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.module = driver.module()
        self.kernel = driver.function(self.module, "count")
        self.counter = driver.alloc(4)
        self._value = c_uint64(self.counter)
        self.arguments = arguments([self._value])
        self.expected = 0

    def check(self) -> None:
        """As many kernels ran as were launched."""
        self.driver.wait()
        found = self.driver.number(self.counter)
        if found != self.expected % (1 << 32):
            raise WrongResultError(f"{self.expected} launches, {found} kernels ran")

    def result(self) -> Result:
        """After the check: what a fixed number of launches leaves."""
        self.check()
        self.driver.set_number(self.counter, 0)
        launch = self.driver.address("cuLaunchKernel")
        self.driver.loops.run("bench_launch", launch, self.kernel, None, self.arguments, 100)
        self.driver.wait()
        self.expected = 100
        return digest(self.driver.download(self.counter, 4))

    def close(self) -> None:
        """Gives back what it holds."""
        self.driver.free(self.counter)
        self.driver.call("cuModuleUnload", self.module)


def one_thread(setting: Setting) -> Running:
    driver = ready()
    counted = Counted(driver)
    count = 100 if setting.small else 1000
    launch, stream = driver.address("cuLaunchKernel"), driver.stream()

    def step() -> None:
        counted.expected += count
        driver.loops.run("bench_launch", launch, counted.kernel, stream, counted.arguments, count)

    def close() -> None:
        driver.call("cuStreamDestroy_v2", stream)
        counted.close()

    return Running(step, driver.wait, counted.result, close, operations=count)


def _threads(setting: Setting) -> Running:
    driver = ready()
    counted = Counted(driver)
    count = 50 if setting.small else 1000
    streams = [driver.stream() for _ in range(_THREADS)]
    places = (c_void_p * _THREADS)(*[each.value for each in streams])
    launch, set_current = driver.address("cuLaunchKernel"), driver.address("cuCtxSetCurrent")
    context = int(driver.context.value or 0)

    def step() -> None:
        counted.expected += count * _THREADS
        driver.loops.run(
            *("bench_launch_threads", launch, set_current, context, counted.kernel, places),
            *(counted.arguments, _THREADS, count),
        )

    def close() -> None:
        for each in streams:
            driver.call("cuStreamDestroy_v2", each)
        counted.close()

    return Running(step, driver.wait, counted.result, close, operations=count * _THREADS)


def _waited_for(setting: Setting) -> Running:
    driver = ready()
    counted = Counted(driver)
    count = 10 if setting.small else 100
    launch, wait = driver.address("cuLaunchKernel"), driver.address("cuStreamSynchronize")
    stream = driver.stream()

    def step() -> None:
        counted.expected += count
        driver.loops.run(
            *("bench_launch_wait", launch, counted.kernel, stream, counted.arguments),
            *(wait, count),
        )

    def close() -> None:
        driver.call("cuStreamDestroy_v2", stream)
        counted.close()

    return Running(step, driver.wait, counted.result, close, operations=count)


def _gpu_bound(setting: Setting) -> Running:
    driver = ready()
    module = driver.module()
    kernel = driver.function(module, "work")
    blocks, threads = (2, 32) if setting.small else (528, 256)
    rounds = 16 if setting.small else 1 << 18
    size = blocks * threads * 4
    data = driver.alloc(size)
    kept = (c_uint64(data), ctypes.c_uint(rounds))

    def step() -> None:
        places = arguments(kept)
        driver.call(
            *("cuLaunchKernel", kernel, ctypes.c_uint(blocks), ctypes.c_uint(1), ctypes.c_uint(1)),
            *(ctypes.c_uint(threads), ctypes.c_uint(1), ctypes.c_uint(1), ctypes.c_uint(0)),
            *(None, places, None),
        )

    def result() -> Result:
        return digest(driver.download(data, size))

    def close() -> None:
        driver.free(data)
        driver.call("cuModuleUnload", module)

    return Running(step, driver.wait, result, close)


WORKLOADS = (
    Workload("launch", LAUNCH, one_thread),
    Workload("launch_8_threads", LAUNCH, _threads),
    Workload("launch_and_wait", ITEM, _waited_for),
    Workload("gpu_bound_kernel", GPU, _gpu_bound),
)
