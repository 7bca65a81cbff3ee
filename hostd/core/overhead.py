"""What the driver takes for sessions besides their programs' memory: contexts above all.

It is not charged to quotas, but it is not there for others either: placement leaves it out of what
it promises (`placement`). The rule: what the driver says that a session's worker holds, less what
the worker has charged to its vGPU. Both move between the two looks, so a figure may be off by an
allocation until the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from gpupool.hostd.core.ports import PortError, VgpuPages
from gpupool.hostd.core.session import Session
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")


def note_overhead(
    pages: VgpuPages, sessions: Iterable[Session], held: Mapping[str, Mapping[int, int]]
) -> None:
    """Writes down what each session's worker holds besides. `held`: bytes by GPU and process; a
    worker that is not in it keeps its last figure.
    """
    for session in sessions:
        for seat in session.seats:
            held_bytes = held.get(seat.gpu, {}).get(session.worker_pid)
            if held_bytes is None:
                continue
            try:
                used_bytes = pages.use(seat.vgpu, [seat.account_row]).memory_bytes
                overhead_bytes = max(0, held_bytes - used_bytes)
                pages.write_overhead(seat.vgpu, seat.account_row, overhead_bytes)
            except PortError as error:
                facts = {"session": session.id, "error": str(error)}
                log.error("overhead not written down", extra=fields(facts))
