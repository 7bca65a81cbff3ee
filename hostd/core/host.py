"""The sessions of this host: admitted, started, found again after a restart, ended and forgotten.

Invariants: the table holds every session whose worker may still run; a record is on disk before its
worker is started, so a hostd that dies in between finds the worker again. Nothing here waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from gpupool.hostd.core.admission import (
    Door,
    Grant,
    Limits,
    Refusal,
    admit,
    check_devices,
    check_token,
    wanted_of,
)
from gpupool.hostd.core.ahead import Ahead, AheadSettings
from gpupool.hostd.core.allocation import Allocations, NoPlace, Plan
from gpupool.hostd.core.gpu import Inventory
from gpupool.hostd.core.peer import Peer, owner_of
from gpupool.hostd.core.placement import Room, describe
from gpupool.hostd.core.ports import (
    Client,
    Counters,
    DeviceUsage,
    PortError,
    WorkerEnd,
    WorkerProcess,
)
from gpupool.hostd.core.report import OwnSession, make_report
from gpupool.hostd.core.session import Session, SessionState, number_of
from gpupool.hostd.core.start import Ports, start_worker
from gpupool.hostd.core.vgpu import Quota, Wanted
from gpupool.hostd.core.vgpu_table import NoRowError
from gpupool.hostd.core.waiting_line import Ticket, WaitingLine
from gpupool.hostd.core.window import OpenPiece, free_again, take_piece
from gpupool.hostd.log import fields
from gpupool.wire.hello import Hello, SessionKind, TransportKind, WelcomeStatus
from gpupool.wire.query import Query, Report

log = logging.getLogger("gpupool.hostd")


_NONE_AHEAD = AheadSettings(workers=0)


@dataclass(slots=True)
class Past:
    """The sessions that have ended while this hostd was there."""

    sessions: int = 0
    failed: int = 0  # of them, those whose worker did not end well
    counters: Counters = Counters()  # noqa: RUF009 (frozen)


class Host:
    """The table of sessions and the decisions about it."""

    def __init__(
        self,
        ports: Ports,
        limits: Limits,
        inventory: Inventory,
        ahead: AheadSettings = _NONE_AHEAD,
    ) -> None:
        self._ports = ports
        self._ahead = Ahead(ahead, ports.workers, ports.clock)
        self._limits = limits
        self.allocations = Allocations(ports.pages, ports.vgpus)
        self._sessions: dict[int, Session] = {}
        self.inventory = inventory
        self.last_change_s = ports.clock.monotonic_s()  # when a session last began or ended
        self.on_change: list[Callable[[], None]] = []
        self.started = 0  # sessions, since this hostd began
        self.past = Past()
        self.line = WaitingLine()
        self.closed = ""  # why nobody may come now; empty: they may

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Every session that may still have a worker, oldest first."""
        return tuple(self._sessions[key] for key in sorted(self._sessions))

    @property
    def workers_waiting(self) -> int:
        """How many workers were started ahead of need and have no client yet."""
        return self._ports.workers.prepared()

    def activity(self, session_id: int) -> tuple[Counters, tuple[DeviceUsage, ...]]:
        """What a session has done, and what it uses of its GPUs now."""
        store = self._ports.store
        return store.counters(session_id), store.usage(session_id)

    def adopt(self) -> int:
        """Finds the workers of an earlier hostd again; forgets those that are gone.

        Returns how many go on.
        """
        for session in self._ports.store.load():
            process: WorkerProcess | None = WorkerProcess(
                session.worker_pid, session.worker_start_ticks
            )
            if session.state is SessionState.STARTING:
                process = self._ports.workers.find(session.id, session.tenant_number)
                if process is not None:
                    session = session.with_worker(process.pid, process.start_ticks)
            if process is None or not self._watch(session.id, process):
                log.info(
                    "session ended while hostd was away",
                    extra=fields({"session": session.id, "worker": session.worker_pid}),
                )
                free_again(self._ports.vm_windows, session)
                self._ports.store.remove(session.id)
                continue
            self._sessions[session.id] = session
            self._watch_client(session)
            self._ports.store.save(session)
            log.info(
                "session found again",
                extra=fields(
                    {"session": session.id, "worker": process.pid, "program": session.program}
                ),
            )
        self.allocations.adopt(self.sessions)
        for placed in self.allocations.table.placed:
            # A resize that was under way: the vGPU's own record is what counts.
            self.save_quota(placed.vgpu.id, placed.sessions, placed.vgpu.quota)
        self.changed()
        return len(self._sessions)

    def open(
        self,
        hello: Hello,
        peer: Peer,
        door: Door,
        socket_fd: int,
        lane_fds: tuple[int, ...] = (),
        ticket: Ticket | None = None,
    ) -> Session | Refusal | NoPlace:
        """Admits a client and starts its worker on `socket_fd` and its further connections (all
        borrowed), or says why not. NoPlace: it may wait, with a `ticket` of `line`.
        """
        if self.closed:
            return Refusal(WelcomeStatus.LIMIT, self.closed)
        known = len(self._sessions)
        answer = admit(hello, door, self._limits, self.inventory, known)
        if isinstance(answer, Refusal):
            return answer
        plan = self.plan(self.wanted(hello, peer, door), ticket)
        if isinstance(plan, NoPlace):
            return plan if plan.may_wait else Refusal(WelcomeStatus.LIMIT, plan.text)
        sockets = (socket_fd, *lane_fds)
        piece = take_piece(self._ports.vm_windows, hello, door, self._sessions.values())
        try:
            return self._start(hello, peer, door, answer, plan, sockets, piece)
        except NoRowError as error:
            return Refusal(WelcomeStatus.LIMIT, f"{error}; end some (`gpupool status`)")
        except PortError as error:
            log.error(
                "worker not started", extra=fields({"error": str(error), "endpoint": door.name})
            )
            return Refusal(WelcomeStatus.WORKER, f"the host could not start a worker: {error}")
        finally:
            if piece is not None:
                self._ports.vm_windows.close(piece.fd)

    def offer(self, inventory: Inventory) -> None:
        """Gives out these GPUs from now on. Sessions that have others keep them."""
        if inventory == self.inventory:
            return
        self.inventory = inventory
        self._ahead.gpus_changed(inventory)
        self.changed()  # there may be room now

    def end_waiting(self) -> None:
        """Ends workers that were started ahead of need: they hold GPUs without a session."""
        self._ahead.end_all()

    def tenant_gone(self, tenant: str) -> None:
        """No session of that tenant will begin soon."""
        self._ahead.tenant_gone(number_of(tenant))

    def wanted(self, asking: Hello | Query, peer: Peer, door: Door) -> Wanted:
        """The vGPU that a client asks for."""
        wanted = wanted_of(asking, self._limits)
        if door.vm and not wanted.vgpu:
            wanted = replace(wanted, vgpu=door.vgpus[0], more=door.vgpus[1:])
        return replace(wanted, uid=peer.uid, owner=owner_of(peer, door), vm=door.vm)

    def plan(self, wanted: Wanted, ticket: Ticket | None = None) -> Plan | NoPlace:
        """Where a client may go now: not past those who wait for room."""
        before = self.line.before(ticket)
        if before and self.allocations.needs_room(wanted):
            asked = wanted.vgpu if wanted.vgpu and not wanted.group else describe(wanted.quota)
            return NoPlace(
                f"{asked} was asked for, and others wait for room on this host ({before}); "
                "wait behind them (gpupool run --wait SECONDS)",
                may_wait=True,
            )
        return self.allocations.plan(wanted, self.inventory)

    def rooms(self) -> tuple[Room, ...]:
        """What may still be promised of each GPU."""
        return self.allocations.rooms(self.inventory)

    def save_quota(self, vgpu_id: int, sessions: Iterable[int], quota: Quota) -> None:
        """The vGPU of these sessions is resized: what counts for one that has several is its first.
        Raises PortError.
        """
        theirs = [self._sessions[one] for one in sessions]
        stale = [one for one in theirs if one.seats[0].vgpu == vgpu_id and one.quota != quota]
        changed = [session.with_quota(quota) for session in stale]
        for session in changed:
            self._ports.store.save(session)
        self._sessions |= {session.id: session for session in changed}

    def report(self, query: Query, peer: Peer, door: Door, host_version: str) -> Report | Refusal:
        """Tells a guest about its vGPUs, or says why not: those that its process has, or would
        get if it asked now.
        """
        refusal = check_token(query.token, door) or check_devices(self.inventory)
        if refusal is not None:
            return refusal
        owner = owner_of(peer, door)
        mine = [
            OwnSession(session, self._ports.store.usage(session.id))
            for session in self.sessions
            if session.owner == owner
        ]
        session = next((one.session for one in mine if query.pid == one.session.client_pid), None)
        if session is not None and query.pid:
            quota, gpus = session.quota, session.devices
            ids = {seat.vgpu for seat in session.seats}
            quotas = self._quotas_of(session)
        else:
            wanted = self.wanted(query, peer, door)
            plan = self.plan(wanted)
            quota, gpus = (plan.quota, plan.gpus) if isinstance(plan, Plan) else (wanted.quota, ())
            vgpus = plan.vgpus if isinstance(plan, Plan) else ()
            ids = {vgpu.id for vgpu in vgpus}
            quotas = {gpu: vgpu.quota for gpu, vgpu in zip(gpus, vgpus, strict=False)}
            if not ids and mine and quota.holds:
                # It would have a vGPU of its own. What it looks for are its user's programs.
                gpus = tuple({uuid: None for one in mine for uuid in one.session.devices})
        if ids and quota.holds:
            mine = [one for one in mine if ids & {seat.vgpu for seat in one.session.seats}]
        used = self._used_of(ids) if quota.memory_mib else {}
        offered = self.inventory.only(gpus)
        return make_report(quota, offered, mine, host_version, used, quotas)

    def _quotas_of(self, session: Session) -> dict[str, Quota]:
        """By GPU: those of its vGPUs, which differ where a virtual machine has several."""
        placed = {seat.gpu: self.allocations.table.place_of(seat.vgpu) for seat in session.seats}
        return {gpu: one.vgpu.quota for gpu, one in placed.items() if one is not None}

    def _used_of(self, vgpus: Iterable[int]) -> dict[str, int]:
        """What all sessions of these vGPUs use, by GPU."""
        used: dict[str, int] = {}
        for vgpu_id in vgpus:
            placed = self.allocations.table.place_of(vgpu_id)
            if placed is not None:
                bytes_here = self.allocations.use(vgpu_id).memory_bytes
                used[placed.gpu] = used.get(placed.gpu, 0) + bytes_here
        return used

    def end(self, session_id: int, *, kill: bool = False) -> bool:
        """Tells the worker of a session to stop. False when there is no such session."""
        session = self._sessions.get(session_id)
        if session is None or session.state is SessionState.STARTING:
            return False
        if session.state is SessionState.RUNNING:
            self._sessions[session_id] = session.moved(SessionState.ENDING)
        self._ports.workers.stop(
            WorkerProcess(session.worker_pid, session.worker_start_ticks), kill=kill
        )
        return True

    def _start(
        self,
        hello: Hello,
        peer: Peer,
        door: Door,
        grant: Grant,
        plan: Plan,
        sockets: tuple[int, ...],
        window: OpenPiece | None,
    ) -> Session:
        if window is not None:
            size_bytes = window.piece.size_bytes
            grant = replace(grant, transport=TransportKind.WINDOW, window_bytes=size_bytes)
        session_id = self._ports.store.next_id()
        client = self._ports.clients.identify(peer.pid, peer.address)
        seats = self.allocations.seat(session_id, plan)
        session = Session(
            id=session_id,
            state=SessionState.STARTING,
            program=hello.program,
            pid=peer.pid or hello.pid,
            uid=peer.uid,
            client_version=hello.client_version,
            transport=grant.transport.word,
            endpoint=door.name,
            devices=plan.gpus,
            compute_percent=plan.quota.compute_percent,
            memory_mib=plan.quota.memory_mib,
            since=self._ports.clock.utc_text(),
            client_start_ticks=client.start_ticks,
            client_address=client.address,
            owner=owner_of(peer, door),
            client_pid=hello.pid,
            vgpu=plan.names or (hello.vgpu if plan.vgpus or plan.group else ""),
            policy=plan.quota.policy.value,
            priority=plan.quota.priority,
            kind=grant.kind.word,
            seats=seats,
            window_offset=window.piece.offset_bytes if window is not None else 0,
            window_bytes=window.piece.size_bytes if window is not None else 0,
        )
        session = replace(session, isolation=self._ports.workers.isolation(session.tenant_number))
        try:
            self._ports.store.save(session)
            self.allocations.enter(session)
            process = start_worker(
                self._ports,
                self.allocations,
                session,
                grant,
                peer.pidfd,
                sockets,
                hello.lanes,
                window.fd if window is not None else None,
            )
        except PortError:
            self._forget(session)
            raise
        session = session.with_worker(process.pid, process.start_ticks)
        self._sessions[session.id] = session
        self.started += 1
        try:
            self.allocations.started(session)
            watched = self._watch(session.id, process)
        except PortError:
            self._ports.workers.stop(process, kill=True)
            self._ended(session.id, WorkerEnd(None))
            raise
        if not watched:
            self._ended(session.id, WorkerEnd(None))
            return session
        self._watch_client(session)
        self._save(session)
        if grant.kind is SessionKind.CUDA:
            self._ahead.session_started(session.tenant_number, self.inventory)
        log.info(
            "session started",
            extra=fields(
                {
                    "session": session.id,
                    "kind": session.kind,
                    "program": session.program,
                    "pid": session.pid,
                    "uid": session.uid,
                    "transport": session.transport,
                    "endpoint": session.endpoint,
                    "worker": process.pid,
                }
            ),
        )
        self.changed()
        return session

    def _save(self, session: Session) -> None:
        """Writes down where the worker runs.

        Failing here does not end a session that works: it is logged.
        """
        try:
            self._ports.store.save(session)
        except PortError as error:
            log.error(
                "session record not written",
                extra=fields({"session": session.id, "error": str(error)}),
            )

    def _watch(self, session_id: int, process: WorkerProcess) -> bool:
        return self._ports.workers.watch(process, partial(self._ended, session_id))

    def _watch_client(self, session: Session) -> None:
        pid = session.pid if session.client_start_ticks else 0
        client = Client(pid, session.client_start_ticks, session.client_address)
        self._ports.clients.watch(session.id, client, partial(self._client_gone, session.id))

    def _client_gone(self, session_id: int) -> None:
        """The worker sees it, too, and ends at once, unless it hangs or is no longer ours."""
        grace_s = self._limits.end_grace_s
        self._ports.clock.later(grace_s, partial(self._end_by_force, session_id, grace_s))

    def _end_by_force(self, session_id: int, grace_s: float) -> None:
        session = self._sessions.get(session_id)
        if session is None:
            return
        log.error(
            "worker outlives its client, killed",
            extra=fields({"session": session_id, "worker": session.worker_pid, "after_s": grace_s}),
        )
        self.end(session_id, kill=True)

    def _ended(self, session_id: int, end: WorkerEnd) -> None:
        session = self._sessions.pop(session_id, None)
        self._ports.clients.forget(session_id)
        if session is None:
            return
        counters = self._ports.store.counters(session_id)
        self._forget(session)
        expected = end.exit_code in (0, None) or session.state is SessionState.ENDING
        self.past.sessions += 1
        self.past.failed += not expected
        self.past.counters += counters
        log.log(
            logging.INFO if expected else logging.ERROR,
            "session ended",
            extra=fields(
                {
                    "session": session_id,
                    "program": session.program,
                    "worker": session.worker_pid,
                    "how": end.text,
                }
            ),
        )
        session.moved(SessionState.ENDED)
        self._ahead.session_ended(session.tenant_number, self.inventory)
        self.changed()

    def _forget(self, session: Session) -> None:
        """Nothing of it is left on the machine; its record goes last, so that a hostd that dies on
        the way finds the rest.
        """
        self._ports.exchange.leave(session.id)
        free_again(self._ports.vm_windows, session)
        self.allocations.leave(session)
        self._ports.store.remove(session.id)

    def changed(self) -> None:
        """Sessions or vGPUs have: there may be room for those who wait."""
        self.last_change_s = self._ports.clock.monotonic_s()
        for tell in tuple(self.on_change):
            tell()
