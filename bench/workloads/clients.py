"""Four client processes at once on one GPU, each with a session and a worker of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gpupool.bench.link import Answer, Link, cpu_s
from gpupool.bench.workloads.base import (
    CLIENTS,
    Result,
    Running,
    Setting,
    UnavailableError,
    Workload,
    WrongResultError,
)

_CLIENTS = 4
_MODES = ("native", "shm", "tcp")  # each holds four processes with a framework
_TIMEOUT_S = 200.0


class Clients:
    """Processes that build the same workload and run its steps at the same time."""

    def __init__(self, name: str, setting: Setting) -> None:
        command = [sys.executable, "-m", "gpupool.bench.agent"]
        command += ["--torch-device", setting.torch_device, *(["--small"] if setting.small else [])]
        self._links = [Link(command, os.environ, Path(os.devnull)) for _ in range(_CLIENTS)]
        try:
            built = self.ask("build", name=name)
        except BaseException:
            self.close()
            raise
        self.steps = 1
        for answer in built:
            if "skip" in answer:
                self.close()
                raise UnavailableError(answer["skip"])
        # A step of ours is 20 ms of theirs or more, so that asking costs little.
        slowest_s = max(float(answer["step_s"]) for answer in built)
        self.steps = max(1, round(0.02 / slowest_s))

    def ask(self, do: str, **words: object) -> list[Answer]:
        """Asks all, waits for all. Raises WrongResultError with what one of them said."""
        for link in self._links:
            link.send(do, **words)
        answers = [link.receive(_TIMEOUT_S) for link in self._links]
        for answer in answers:
            if "error" in answer:
                raise WrongResultError(f"a client: {answer['error']}")
        return answers

    def cpu_s(self) -> float:
        """Of all clients, so far."""
        return sum(cpu_s(link.pid) for link in self._links)

    def close(self) -> None:
        """Lets them leave."""
        for link in self._links:
            link.end()


def _at_once(name: str, setting: Setting) -> Running:
    clients = Clients(name, setting)

    def result() -> Result:
        found = [Result(each["digest"], tuple(each["values"])) for each in clients.ask("result")]
        return Result(
            "".join(each.digest for each in found),
            tuple(value for each in found for value in each.values),
        )

    running = Running(
        lambda: clients.ask("steps", count=clients.steps),
        lambda: None,  # a client answers when its work is done
        result,
        clients.close,
        operations=clients.steps * _CLIENTS,
    )
    running.more_cpu_s = clients.cpu_s
    return running


def _made_of(name: str) -> Callable[[Setting], Running]:
    return partial(_at_once, name)


WORKLOADS = (
    Workload(
        "clients_4_launch_and_wait",
        CLIENTS,
        _made_of("launch_and_wait"),
        duration_factor=2,
        modes=_MODES,
    ),
    Workload(
        *("clients_4_resnet50_infer", CLIENTS, _made_of("resnet50_infer"), 2e-2, "torch"),
        duration_factor=3,
        modes=_MODES,
    ),
    Workload(
        *("clients_4_llm_decode_eager", CLIENTS, _made_of("llm_decode_eager"), 2e-2, "torch"),
        duration_factor=3,
        modes=_MODES,
    ),
)
