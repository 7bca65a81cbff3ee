"""A hostd that is killed between any two steps that change the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
