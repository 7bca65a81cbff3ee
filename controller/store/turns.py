"""Changes of one process take turns, and those that wait go together.

A commit waits for the disk, often longer than all the rest of a change takes. So whoever has the
turn takes along what is waiting by then: one transaction, one commit, for up to `MOST` changes.
Each of them is undone by itself if it raises. Nobody is answered before the commit.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from gpupool.controller.core.errors import StoreError
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.single import Single

MOST = 16


class Waiting:
    """One change, and what became of it."""

    def __init__(self, work: Callable[[Tables], Any], single: Single[Any] | None = None) -> None:
        self.work = work
        self.single = single  # the same as data, where it can be told so
        self.result: Any = None
        self.error: BaseException | None = None
        self.leads = False
        self.woken = threading.Event()

    def outcome(self) -> Any:
        """What it returned. Raises what it raised."""
        if self.error is not None:
            raise self.error
        return self.result


class Turns:
    """`run` puts changes into effect together: it sets the result or error of each, or raises."""

    def __init__(self, run: Callable[[Sequence[Waiting]], None], timeout_s: float) -> None:
        self._run = run
        self._timeout_s = timeout_s
        self._mutex = threading.Lock()
        self._queue: deque[Waiting] = deque()
        self._busy = False

    def take(self, work: Callable[[Tables], Any], single: Single[Any] | None = None) -> Any:
        """Waits for its turn, or is taken along. Raises StoreError after a while."""
        one = Waiting(work, single)
        with self._mutex:
            self._queue.append(one)
            one.leads = not self._busy
            self._busy = True
        if not one.leads:
            self._wait(one)
        if one.leads:
            self._lead(one)
        return one.outcome()

    def _wait(self, one: Waiting) -> None:
        if one.woken.wait(self._timeout_s):
            return
        with self._mutex:
            if one.leads:
                return
            if one in self._queue:
                self._queue.remove(one)
                raise StoreError("too many changes wait for the database")
        if not one.woken.wait(self._timeout_s):
            raise StoreError("the database took too long", unsure=True)

    def _lead(self, one: Waiting) -> None:
        with self._mutex:  # it is the first
            batch = [self._queue.popleft() for _ in range(min(MOST, len(self._queue)))]
        try:
            self._run(batch)
        except BaseException as error:
            for each in batch:
                each.error = error
        finally:
            with self._mutex:
                following = self._queue[0] if self._queue else None
                if following is not None:
                    following.leads = True
                else:
                    self._busy = False
            for each in batch:
                if each is not one:
                    each.woken.set()
            if following is not None:
                following.woken.set()
