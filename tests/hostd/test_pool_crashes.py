"""hostd dies at every call that a switch makes, before it and after it; the next one finishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpupool.hostd.core.operation import OperationState
from gpupool.hostd.core.pool import NativeKind, PoolState
from tests.fakes.pool_rig import OTHER, UUID, KernelCards, Rig, Running, check_settled

Action = Callable[[Running], object]


class Death(BaseException):
    """hostd is gone, without any handler having run."""


@dataclass
class Reaper:
    """Counts the calls of all ports of one life, and ends it at one of them."""

    at: int
    after: bool  # the call was made, and nobody learnt of it
    calls: int = 0

    def wrap(self, port: Any) -> Any:
        """The port, watched."""
        return _Watched(port, self)


class _Watched:
    def __init__(self, port: Any, reaper: Reaper) -> None:
        self._port = port
        self._reaper = reaper

    def __getattr__(self, name: str) -> Any:
        method, reaper = getattr(self._port, name), self._reaper

        def call(*arguments: Any, **named: Any) -> Any:
            reaper.calls += 1
            mine = reaper.calls == reaper.at
            if mine and not reaper.after:
                raise Death(name)
            answer = method(*arguments, **named)
            if mine:
                raise Death(name)
            return answer

        return call


def to_native(kind: NativeKind) -> Action:
    """Asks for it."""
    return lambda running: running.ask("native", kind)


def to_pooled(running: Running) -> object:
    """Asks for it."""
    return running.ask("pooled")


def failing(kind: NativeKind) -> Action:
    """To native, where a step fails: it comes back."""

    def ask(running: Running) -> object:
        if kind is NativeKind.VFIO:
            running.rig.pci.refuse["claim"] = "it is stuck"
        else:
            running.rig.cdi.fail = "it is stuck"
        return running.ask("native", kind)

    return ask


def ended_by_deadline(running: Running) -> object:
    """A session is in the way."""
    running.rig.users.on = {3: (UUID, OTHER), 4: (OTHER,)}
    return running.ask("native", deadline_s=5)


@dataclass
class Way:
    """One switch: what comes before it, what is asked for, where it may end."""

    before: tuple[Action, ...]
    ask: Action
    goal: PoolState
    rest_s: float = 5


WAYS = {
    "container": Way((), to_native(NativeKind.CONTAINER), PoolState.NATIVE),
    "vfio": Way((), to_native(NativeKind.VFIO), PoolState.NATIVE),
    "container back": Way((to_native(NativeKind.CONTAINER),), to_pooled, PoolState.POOLED),
    "vfio back": Way((to_native(NativeKind.VFIO),), to_pooled, PoolState.POOLED),
    "container fails": Way((), failing(NativeKind.CONTAINER), PoolState.POOLED),
    "vfio fails": Way((), failing(NativeKind.VFIO), PoolState.POOLED),
    "deadline": Way((), ended_by_deadline, PoolState.NATIVE, 30),
}


def prepared(way: Way, rig: Rig | None = None) -> Rig:
    """A machine before the switch."""
    rig = rig or Rig()
    running = rig.start()
    for action in way.before:
        action(running)
        running.go(5)
    return rig


def life(rig: Rig, way: Way, reaper: Reaper, *, ask: bool) -> bool:
    """One hostd until it has nothing more to do (True), or dies."""
    try:
        running = rig.start(reaper.wrap)
        if ask:
            way.ask(running)
        running.go(way.rest_s)
    except Death:
        return False
    return True


def check_end(rig: Rig, way: Way, name: str) -> None:
    """The hostd that comes after all of it."""
    running = rig.start()
    if len(running.pools.operations) == len(way.before):
        way.ask(running)  # it was never written down: whoever asked got no answer, and asks again
    running.go(60)
    assert check_settled(running) is way.goal, name
    assert OTHER in running.offered()
    assert 4 not in [session for session, _ in rig.users.told]
    if "fails" in name:
        assert running.pools.operations[-1].state is OperationState.FAILED
        assert running.pools.operations[-1].error == "it is stuck"
    # And it can go on from there.
    rig.pci.refuse.clear()
    rig.cdi.fail = ""
    rig.users.on.clear()
    for _ in range(2):
        native = running.gpu().state is PoolState.NATIVE
        running.ask("pooled" if native else "native", NativeKind.VFIO)
        running.go(5)
        assert check_settled(running) is (PoolState.POOLED if native else PoolState.NATIVE)


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
@pytest.mark.parametrize("name", WAYS)
def test_hostd_dies_at_every_call(name: str, after: bool) -> None:
    way = WAYS[name]
    at = 0
    while True:
        at += 1
        rig = prepared(way)
        survived = life(rig, way, Reaper(at, after), ask=True)
        check_end(rig, way, name)
        if survived:
            break  # there was no such call
    assert at > 8, "nothing was counted"


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
@pytest.mark.parametrize("name", ["vfio", "vfio back"])
def test_hostd_dies_at_every_write_to_sysfs(tmp_path: Path, name: str, after: bool) -> None:
    """The real adapter on a tree that acts as the kernel's."""
    way = WAYS[name]
    at = 0
    while True:
        at += 1
        rig = prepared(way, Rig(kernel=KernelCards(tmp_path / str(at))))
        survived = life(rig, way, Reaper(at, after), ask=True)
        check_end(rig, way, name)
        if survived:
            break
    assert at > 14, "nothing was counted"


@pytest.mark.parametrize("name", WAYS)
def test_hostd_dies_again_while_it_goes_on(name: str) -> None:
    """Each life lasts a few calls longer than the one before."""
    way = WAYS[name]
    for first in range(3, 40, 3):
        rig = prepared(way)
        life(rig, way, Reaper(first, after=True), ask=True)
        for calls in range(1, 12):
            # What was asked and written down is not asked again.
            life(rig, way, Reaper(calls, after=calls % 2 == 0), ask=False)
        check_end(rig, way, name)


@pytest.mark.parametrize("state", PoolState)
@pytest.mark.parametrize("kind", NativeKind)
def test_hostd_is_restarted_in_each_state(state: PoolState, kind: NativeKind) -> None:
    """A tidy end and start, wherever the GPU is."""
    rig = Rig()
    running = rig.start()
    goal = (
        PoolState.POOLED if state in (PoolState.POOLED, PoolState.TO_POOLED) else PoolState.NATIVE
    )
    if state is not PoolState.POOLED:
        running.ask("native", kind)
    if state is PoolState.TO_NATIVE:
        assert running.pools.moves.next_work() is not None
    elif state in (PoolState.NATIVE, PoolState.TO_POOLED):
        running.go()
    if state is PoolState.TO_POOLED:
        running.ask("pooled")
    assert running.gpu().state is state
    again = rig.start()
    assert again.gpu() == running.gpu()
    assert (UUID in again.offered()) is (state is PoolState.POOLED)
    again.go(5)
    assert check_settled(again) is goal
