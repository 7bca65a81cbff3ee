"""A hostd that is killed between any two steps that change the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from gpupool.hostd.core.start import Ports
from tests.hostd.test_host import Machine

_PAGES = ("write_vgpu", "write_session", "write_account", "remove_account", "open", "remove_lease")


class Killed(BaseException):
    """hostd got SIGKILL here."""


class Fuse:
    """Burns after so many steps; None: never."""

    def __init__(self) -> None:
        self.left: int | None = None

    def step(self) -> None:
        """Before and after every step: half of a kill's moments each."""
        if self.left is None:
            return
        if self.left == 0:
            raise Killed
        self.left -= 1


class Killable:
    """A fake whose changing methods are steps."""

    def __init__(self, fake: Any, fuse: Fuse, steps: tuple[str, ...]) -> None:
        self._fake, self._fuse, self._steps = fake, fuse, steps

    def __getattr__(self, name: str) -> Any:
        """The fake's own, or a step around it."""
        found = getattr(self._fake, name)
        return self._step(found) if name in self._steps else found

    def _step(self, action: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            self._fuse.step()
            result = action(*arguments, **more)
            self._fuse.step()
            return result

        return run


def fused_ports(one: Machine, fuse: Fuse, workers: tuple[str, ...]) -> Ports:
    """hostd's ports on a machine, whose changes are steps; `workers`: those of its workers'."""
    return Ports(
        Killable(one.workers, fuse, workers),
        Killable(one.store, fuse, ("save", "remove", "create_usage", "next_id")),
        one.windows,
        one.clock,
        one.exchange,
        one.clients,
        Killable(one.pages, fuse, (*_PAGES, "restore")),
        Killable(one.vgpus, fuse, ("save", "remove")),
        one.vm_windows,
    )


def close_all(one: Machine) -> None:
    """What a dead hostd had open and watched: the kernel closes it."""
    for opened in (
        one.pages.opened,
        one.windows.open,
        one.exchange.open,
        one.vm_windows.opened,
    ):
        opened.clear()
    one.store.open_usages.clear()
    one.clients.watched.clear()
    one.workers._watchers.clear()


class Killing(Protocol):
    """A machine whose hostd is killed and started again."""

    fuse: Fuse

    def kill(self) -> None:
        """And another starts."""

    def check(self) -> None:
        """What always holds."""

    def end_all(self) -> None:
        """Everything ends, and nothing may be left."""


Rig = TypeVar("Rig", bound=Killing)


def play(
    rig: Rig,
    script: Iterable[tuple[Sequence[Any], int | None]],
    *refusals: type[Exception],
) -> None:
    """Does an action (its function and what it takes) after the other, and kills hostd where the
    fuse of one burns; an action may be refused.
    """
    for (action, *what), fuse in script:
        rig.fuse.left = fuse
        try:
            with contextlib.suppress(*refusals):
                action(rig, *what)
        except Killed:
            rig.kill()
        rig.fuse.left = None
        rig.check()
    rig.end_all()


def kill_at_every_moment(
    make: Callable[[], Rig],
    cases: Iterable[tuple[Callable[[Rig], object], Callable[[Rig], object]]],
) -> int:
    """For each case, what comes before and the action: a kill at each step of that; how many."""
    moments = 0
    for before, action in cases:
        for moment in range(_steps_of(make(), before, action) + 1):
            rig = make()
            before(rig)
            rig.fuse.left = moment
            with contextlib.suppress(Killed):
                action(rig)
            rig.kill()
            rig.check()
            rig.end_all()
            moments += 1
    return moments


def _steps_of(rig: Rig, before: Callable[[Rig], object], action: Callable[[Rig], object]) -> int:
    before(rig)
    rig.fuse.left = 1000
    action(rig)
    return 1000 - (rig.fuse.left or 0)
