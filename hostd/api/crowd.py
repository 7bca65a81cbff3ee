"""How many connections each virtual machine has at a door: one must not fill it for the others."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from gpupool.hostd.core.admission import Door
from gpupool.hostd.core.peer import Peer


class Crowd:
    """Those at one door."""

    def __init__(self, most: int) -> None:
        """`most`: of one virtual machine."""
        self._most = most
        self._there: Counter[str] = Counter()

    @contextlib.contextmanager
    def enter(self, door: Door, peer: Peer) -> Iterator[bool]:
        """One more of them, until the end of the block. False: too many are there already.

        Who comes from no virtual machine is not counted.
        """
        who = door.vm or door.sandbox
        who = who or (peer.address.rpartition(":")[0] if door.vms_only else "")
        if not who:
            yield True
            return
        self._there[who] += 1
        try:
            yield self._there[who] <= self._most
        finally:
            self._there[who] -= 1
            if not self._there[who]:
                del self._there[who]
