"""The process that runs workloads in one mode: `python -m gpupool.bench.agent`.

It lives as long as the bench. The runner asks, one JSON object a line on standard input; it
answers, one a line on what was its standard output (libraries that print get standard error
instead). Standard library only, Python 3.10: it runs in the user's own Python. What it can be asked
is the table at the end. It ends when its standard input does.

`python -m gpupool.bench.agent NAME...` builds each workload once, runs it and checks its result,
without a runner; exit code 1 when one fails.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from gpupool.bench import counters
from gpupool.bench.workloads import everything
from gpupool.bench.workloads.base import Running, Setting, UnavailableError

Answer = dict[str, Any]
_WARM_UP_STEPS = 3
_LEAST_BATCH_S = 0.01


class Agent:
    """At most one workload at a time."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._running: Running | None = None
        self._step_s = 1.0  # of the last batch

    def facts(self, wants_torch: bool) -> Answer:
        """Opens the GPU, and says what this process is made of."""
        found: Answer = {"pid": os.getpid(), "python": platform.python_version()}
        if wants_torch:
            with contextlib.suppress(ImportError):
                import torch

                found["torch"] = torch.__version__
                if self._setting.torch_device == "cuda":
                    torch.zeros(1, device="cuda")
                    found["gpu"] = torch.cuda.get_device_name()
        if self._setting.torch_device == "cuda":
            from gpupool.bench.workloads.cuda import describe

            found |= describe()
        return found

    def build(self, name: str) -> Answer:
        """Makes a workload, warms it up, learns how long a step takes."""
        self.drop()
        try:
            running = everything()[name].make(self._setting)
        except UnavailableError as error:
            return {"skip": str(error)}
        self._running = running
        for _ in range(_WARM_UP_STEPS):
            running.step()
        running.wait()
        steps = 1
        while True:
            took = self._batch(running, steps)["total_s"]
            self._step_s = took / steps
            if took >= _LEAST_BATCH_S:
                return {"step_s": self._step_s}
            steps *= 4

    def time(self, seconds: float) -> Answer:
        """One round: as many steps as fit."""
        running = self._built()
        steps = max(1, round(seconds / self._step_s))
        before = counters.snapshot()
        figures = self._batch(running, steps)
        counts = counters.difference(before, counters.snapshot())
        self._step_s = figures["total_s"] / steps
        if counts is not None:
            figures["counts"] = counts
        return figures

    def steps(self, count: int) -> Answer:
        """Some steps, to their end; for a client among several."""
        return self._batch(self._built(), count)

    def result(self) -> Answer:
        """What the work produced."""
        found = self._built().result()
        return {"digest": found.digest, "values": list(found.values)}

    def drop(self) -> Answer:
        """Gives the workload back."""
        if self._running is not None:
            close, self._running = self._running.close, None
            close()
            del close
            # What it held is garbage now. PyTorch's allocator would keep the memory, and the
            # processes of all modes share one GPU.
            gc.collect()
            torch = sys.modules.get("torch")
            if torch is not None and self._setting.torch_device == "cuda":
                torch.cuda.empty_cache()
        return {}

    def _built(self) -> Running:
        if self._running is None:
            raise RuntimeError("no workload was built")
        return self._running

    @staticmethod
    def _batch(running: Running, steps: int) -> Answer:
        step = running.step
        cpu_s = time.process_time() + running.more_cpu_s()
        begin_ns = time.perf_counter_ns()
        for _ in range(steps):
            step()
        issued_ns = time.perf_counter_ns()
        running.wait()
        end_ns = time.perf_counter_ns()
        return {
            "operations": steps * running.operations,
            "bytes_moved": running.bytes_moved,  # by one operation
            "total_s": (end_ns - begin_ns) / 1e9,
            "issue_s": (issued_ns - begin_ns) / 1e9,
            "client_cpu_s": time.process_time() + running.more_cpu_s() - cpu_s,
        }


def serve(agent: Agent, answers: TextIO) -> None:
    """Answers until nobody asks any more."""
    known: dict[str, Callable[..., Answer]] = {
        "facts": agent.facts,
        "build": agent.build,
        "time": agent.time,
        "steps": agent.steps,
        "result": agent.result,
        "drop": agent.drop,
    }
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = known[request.pop("do")](**request)
        except Exception as error:  # whatever a workload raises is its result
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers, flush=True)


def run_once(agent: Agent, names: list[str]) -> int:
    """Each workload built, run and checked, without a runner."""
    failed = 0
    for name in names:
        try:
            answer = agent.build(name)
            if "skip" not in answer:
                answer = {**agent.time(0.01), **agent.result()}
                agent.drop()
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
            failed += 1
        shown = {key: value for key, value in answer.items() if key != "values"}
        print(json.dumps({"name": name, **shown}), flush=True)
    return 1 if failed else 0


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--torch-device", default="cuda")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    agent = Agent(Setting(small=arguments.small, torch_device=arguments.torch_device))
    if arguments.names:
        return run_once(agent, arguments.names)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(agent, answers)
    agent.drop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
