"""A client of `bench.shares`: keeps a GPU busy, or uses a fifth of it, and says how far it is.

    python -m gpupool.bench.workloads.shares_client KIND STEPS

KIND is `calibrate`, or what is done over and over: `small` kernels, `long` ones launched and waited
for, `graphs` of 20 small ones, `gemm` (PyTorch's product of two 8192 x 8192 matrices, waited for),
or `light`, a fifth of the GPU's time in pieces of 2 ms. STEPS: of the loop that takes 1 ms.

Says `ready` after its first pieces of work; then each line of its input is answered by one of JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from ctypes import byref, c_int, c_uint, c_uint64, c_void_p

from gpupool.bench.workloads.cuda import PTX, Driver, arguments

_AT_ONCE = 32  # small kernels between two events
_NODES = 20  # of a graph
_SMALL_US, _LONG_US = 20, 3000
_LIGHT_US, _LIGHT_EVERY_S = 2000, 0.01
_GEMM = 8192
_LOOK_S = 0.01


class Client:
    """Its work, and what is told of it."""

    def __init__(self, driver: Driver, steps: int) -> None:
        self.done = 0  # pieces of work
        self.waits_us: list[float] = []  # of each piece, for `light`
        self._driver = driver
        self._steps = steps
        self._kept: list[c_uint] = []
        self._function = driver.function(driver.module(PTX), "work")
        self._data = c_uint64(driver.alloc(4096))
        self._stream = driver.stream()

    def launcher(self, duration_us: float) -> Callable[[], None]:
        """Launches a kernel that takes so long."""
        count = c_uint(max(1, int(self._steps * duration_us / 1000)))
        self._kept.append(count)  # `values` points to it
        values = arguments([self._data, count])
        launch, stream, function = self._driver.library.cuLaunchKernel, self._stream, self._function

        def one() -> None:
            if code := launch(function, 1, 1, 1, 32, 1, 1, 0, stream, values, None):
                raise RuntimeError(f"cuLaunchKernel returned {code}")

        return one

    def wait(self) -> None:
        """For the stream."""
        self._driver.call("cuStreamSynchronize", self._stream)

    def small(self) -> None:
        """Always some in flight."""
        self._in_turns(self.launcher(_SMALL_US), _AT_ONCE)

    def graphs(self) -> None:
        """A graph of small kernels; each node counts."""
        graph, runnable, launch = c_void_p(), c_void_p(), self.launcher(_SMALL_US)
        self._driver.call("cuStreamBeginCapture_v2", self._stream, c_int(2))
        for _ in range(_NODES):
            launch()
        self._driver.call("cuStreamEndCapture", self._stream, byref(graph))
        self._driver.call("cuGraphInstantiateWithFlags", byref(runnable), graph, 0)

        def run() -> None:
            self._driver.call("cuGraphLaunch", runnable, self._stream)

        self._in_turns(run, 4)

    def long(self) -> None:
        """One at a time, waited for."""
        launch = self.launcher(_LONG_US)
        while True:
            launch()
            self.wait()
            self.done += 1

    def gemm(self) -> None:
        """The same with PyTorch."""
        import torch

        left = torch.randn(_GEMM, _GEMM, device="cuda", dtype=torch.float16)
        out = torch.empty_like(left)
        while True:
            torch.mm(left, left, out=out)
            torch.cuda.synchronize()
            self.done += 1

    def light(self) -> None:
        """2 ms of work every 10 ms."""
        launch = self.launcher(_LIGHT_US)
        due = time.monotonic()
        while True:
            begin = time.perf_counter()
            launch()
            self.wait()
            self.waits_us.append((time.perf_counter() - begin) * 1e6)
            self.done += 1
            due = max(due + _LIGHT_EVERY_S, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))

    def _in_turns(self, launch: Callable[[], None], count: int) -> None:
        events = [self._driver.event() for _ in range(3)]
        number = 0
        while True:
            for _ in range(count):
                launch()
            self._driver.call("cuEventRecord", events[number % 3], self._stream)
            number += 1
            if number >= 3:
                self._driver.call("cuEventSynchronize", events[number % 3])
                self.done += count


def calibrate(driver: Driver) -> int:
    """How many steps take a millisecond."""
    steps = 1000
    while True:
        client = Client(driver, steps)
        launch = client.launcher(1000)
        launch()
        client.wait()
        begin = time.perf_counter()
        for _ in range(4):
            launch()
        client.wait()
        took_ms = (time.perf_counter() - begin) * 1000 / 4
        if took_ms > 5 or steps > 1 << 26:
            return max(1, int(steps / took_ms))
        steps *= 4


def main() -> int:
    """Works until its input ends."""
    kind, steps = sys.argv[1], int(sys.argv[2])
    driver = Driver()
    if kind == "calibrate":
        print(json.dumps({"steps": calibrate(driver)}), flush=True)
        return 0
    client = Client(driver, steps)
    work = threading.Thread(target=_work, args=(driver, client, kind), daemon=True)
    work.start()
    while not client.done and work.is_alive():  # libraries load, kernels are chosen
        time.sleep(_LOOK_S)
    print("ready", flush=True)
    for _ in sys.stdin:
        waits, client.waits_us = client.waits_us, []
        told = {"done": client.done, "at_s": time.monotonic(), "waits_us": waits}
        print(json.dumps(told | {"lives": work.is_alive()}), flush=True)
    return 0


def _work(driver: Driver, client: Client, kind: str) -> None:
    driver.use()
    getattr(client, kind)()


if __name__ == "__main__":
    sys.exit(main())
