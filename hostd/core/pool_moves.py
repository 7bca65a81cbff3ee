"""Moving GPUs between the pools, a step at a time.

Invariants: a step is written down before it is done, so whoever comes after a crash goes on there;
a GPU is taken from a live session only when its deadline has passed; a step that fails on the way
to native brings the GPU back. Nothing here waits: steps that touch the machine are handed out
(`next_work`), done elsewhere (pool_steps.perform) and settled here.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from gpupool.hostd.core.operation import Operation
from gpupool.hostd.core.pool import PoolRecord, PoolState, Step
from gpupool.hostd.core.pool_book import PoolBook
from gpupool.hostd.core.pool_ports import GpuUsers
from gpupool.hostd.core.pool_steps import Outcome, Work
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

_SOON_S = 0.2  # something of ours is ending
_RELEASE_S = 30.0  # by then it has ended, or something is wrong
_FIND_AGAIN_S, _FIND_TIMES = 2.0, 10  # a driver that was just bound needs a moment
_AGAIN_S = 30.0  # what got stuck on the way back

_DOING = {
    Step.RELEASE: "ending what waits on it",
    Step.CLEAR: "clearing its memory",
    Step.SURVEY: "looking at the card",
    Step.CLAIM: "binding it to vfio-pci",
    Step.PUBLISH: "writing its CDI device",
    Step.CHECK: "making sure that nobody uses it",
    Step.WITHDRAW: "removing its CDI device",
    Step.RESTORE: "giving it back to its driver",
    Step.FIND: "waiting for the driver to show it",
}


class PoolMoves:
    """Carries out what Pools was asked for. Used from the event loop only."""

    def __init__(self, book: PoolBook, users: GpuUsers, end_grace_s: float) -> None:
        self._book = book
        self._users = users
        self._end_grace_s = end_grace_s
        self._tries: dict[str, int] = {}  # of the step that a GPU is at
        self._told_s: dict[tuple[str, int], float] = {}  # GPU and session that was told to end

    def next_work(self) -> Work | None:
        """Does what can be done here and now; returns one step to be performed, or None."""
        for uuid in [one.uuid for one in self._book.content.gpus]:
            while (record := self._due(uuid)) is not None:
                if record.state is not PoolState.DRAINING and record.step is not Step.RELEASE:
                    return Work(record, self._users.workers())
                try:
                    if not self._go_on(record):
                        break
                except PortError as error:
                    self._book.wait(uuid, _FIND_AGAIN_S, str(error))
        return None

    def settle(self, work: Work, outcome: Outcome) -> None:
        """What became of a step. Not being able to write it down means doing the step again."""
        record = self._book.content.gpu(work.record.uuid)
        if record is None or record != work.record:
            return  # it was asked for something else meanwhile
        try:
            if record.state is PoolState.NATIVE:
                self._looked_after(record, outcome)
            elif outcome.error:
                self._failed(record, outcome.error)
            else:
                self._succeeded(record, outcome)
        except PortError as error:
            self._book.wait(record.uuid, _FIND_AGAIN_S, str(error))

    def due_s(self) -> float | None:
        """Seconds until `next_work` may have something; None: not before something changes."""
        book, now_s = self._book, self._book.now_s()
        waits = []
        for record in book.content.gpus:
            later_s = book.not_before_s.get(record.uuid, now_s) - now_s
            if record.state is not PoolState.DRAINING:
                if record.moving or record.uuid in book.unlooked:
                    waits.append(max(0.0, later_s))
                continue
            if record.deadline_s >= 0:
                waits.append(max(record.deadline_at_s - now_s, _SOON_S))
            if later_s > 0:
                waits.append(later_s)
        return min(waits, default=None)

    def _due(self, uuid: str) -> PoolRecord | None:
        book = self._book
        record = book.content.gpu(uuid)
        if record is None or book.not_before_s.get(uuid, 0.0) > book.now_s():
            return None
        return record if record.moving or uuid in book.unlooked else None

    def _go_on(self, record: PoolRecord) -> bool:
        """A step of hostd's own. False: it waits for something."""
        if record.state is PoolState.DRAINING:
            return self._drain(record)
        if self._users.release(record.uuid):
            self._succeeded(record, Outcome())
            return True
        tries = self._tries[record.uuid] = self._tries.get(record.uuid, 0) + 1
        if tries * _SOON_S > _RELEASE_S:
            self._failed(record, f"something of gpupool's own has not left GPU {record.uuid}")
            return True
        self._book.wait(record.uuid, _SOON_S, "")
        return False

    def _drain(self, record: PoolRecord) -> bool:
        book = self._book
        sessions = self._users.sessions(record.uuid)
        if not sessions:
            fresh = record.moved(PoolState.TO_NATIVE)
            self._commit(fresh, self._progress(fresh, _DOING[Step.RELEASE]))
            return True
        names = ", ".join(str(one) for one in sessions)
        text = f"draining: waits for {'session' if len(sessions) == 1 else 'sessions'} {names}"
        left_s = record.deadline_at_s - book.now_s()
        if record.deadline_s >= 0 and left_s <= 0:
            self._end(record.uuid, sessions)
            text += ", told to end"
        elif record.deadline_s >= 0:
            text += f", at most {left_s:.0f} s"
        operation = self._progress(record, text)
        if operation is not None:  # too small a change to be written down
            book.content = book.content.holding((), (operation,))
        return False

    def _end(self, uuid: str, sessions: tuple[int, ...]) -> None:
        """Their deadline has passed."""
        now_s = self._book.now_s()
        self._told_s = {
            key: at_s for key, at_s in self._told_s.items() if key[0] != uuid or key[1] in sessions
        }
        for one in sessions:
            told_s = self._told_s.get((uuid, one))
            if told_s is None:
                log.info("session ends for its GPU", extra=fields({"session": one, "gpu": uuid}))
                self._told_s[uuid, one] = now_s
                self._users.end(one, kill=False)
            elif now_s - told_s >= self._end_grace_s:
                self._users.end(one, kill=True)

    def _succeeded(self, record: PoolRecord, outcome: Outcome) -> None:
        book = self._book
        if outcome.inventory is not None:
            book.seen = outcome.inventory
        if outcome.functions is not None:
            record = replace(record, functions=outcome.functions)
        step = record.next_step
        if step is not None:
            fresh = replace(record, step=step)
            self._commit(fresh, self._progress(fresh, _DOING[step]))
            return
        operation = book.operation_of(record)
        if record.state is PoolState.TO_NATIVE:
            fresh = record.moved(PoolState.NATIVE, deadline_s=-1)
            text = f"native for {record.kind.value}"
            text += f": {outcome.note}" if outcome.note else ""
            ended = operation and operation.succeeded(text, book.utc_text())
        else:
            fresh = record.moved(
                PoolState.POOLED, functions=(), failure="", force=False, deadline_s=-1
            )
            ended = operation and (
                operation.failed("pooled again", record.failure, book.utc_text())
                if record.failure
                else operation.succeeded("pooled", book.utc_text())
            )
        self._commit(fresh, ended)

    def _failed(self, record: PoolRecord, error: str) -> None:
        book = self._book
        operation = book.operation_of(record)
        if record.state is PoolState.TO_NATIVE:
            fresh = record.moved(PoolState.TO_POOLED, failure=error, deadline_s=-1)
            text = "failed, going back to the pool"
            self._commit(fresh, operation and operation.went_on(text, 50, error))
            return
        if record.step is Step.CHECK:
            # Nothing was touched: it is as native as before.
            fresh = record.moved(PoolState.NATIVE, force=False)
            ended = operation and operation.failed("native still", error, book.utc_text())
            self._commit(fresh, ended)
            return
        tries = self._tries[record.uuid] = self._tries.get(record.uuid, 0) + 1
        if record.step is Step.FIND and tries < _FIND_TIMES:
            book.wait(record.uuid, _FIND_AGAIN_S, "")
            return
        why = f"{record.failure}; and on the way back: {error}" if record.failure else error
        doing = f"stuck: {_DOING[record.step]}" if record.step else "stuck"
        if operation is not None and operation.running:
            book.commit(None, operation.failed(doing, why, book.utc_text()))
        book.wait(record.uuid, _AGAIN_S, error)

    def _looked_after(self, record: PoolRecord, outcome: Outcome) -> None:
        book = self._book
        if outcome.lost:
            text = "it was not bound to vfio-pci any more"
            operation = book.new_operation(record.uuid, "native", text)
            fresh = record.moved(PoolState.TO_NATIVE, operation=operation.id)
            self._commit(fresh, operation)
        elif outcome.error:
            book.wait(record.uuid, _AGAIN_S, outcome.error)
            return
        book.unlooked.discard(record.uuid)
        book.forget_trouble(record.uuid)

    def _commit(self, record: PoolRecord, operation: Operation | None) -> None:
        """Another step or state: what was tried before is over."""
        self._book.commit(record, operation)
        self._tries.pop(record.uuid, None)
        self._book.forget_trouble(record.uuid)

    def _progress(self, record: PoolRecord, text: str) -> Operation | None:
        operation = self._book.operation_of(record)
        return operation and operation.went_on(text, record.percent, record.failure)
