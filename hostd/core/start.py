"""Starting the worker of a session, with everything that it shares with hostd and others."""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.hostd.core.admission import Grant
from gpupool.hostd.core.allocation import Allocations
from gpupool.hostd.core.ports import (
    Clients,
    Clock,
    Exchange,
    SessionStore,
    VgpuPages,
    VgpuStore,
    Windows,
    WorkerOrder,
    WorkerProcess,
    WorkerProcesses,
)
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.window import VmWindows
from gpupool.wire.hello import SessionKind, TransportKind


@dataclass(frozen=True, slots=True)
class Ports:
    """What Host needs from the machine."""

    workers: WorkerProcesses
    store: SessionStore
    windows: Windows
    clock: Clock
    exchange: Exchange
    clients: Clients
    pages: VgpuPages
    vgpus: VgpuStore
    vm_windows: VmWindows


def start_worker(
    ports: Ports,
    allocations: Allocations,
    session: Session,
    grant: Grant,
    client_pidfd: int | None,
    sockets: tuple[int, ...],
    asked_lanes: int,
    vm_window_fd: int | None = None,
) -> WorkerProcess:
    """Makes what they share and starts it. `sockets`: the session's first connection, then the
    further ones; the client had `asked_lanes` of those. `vm_window_fd`: where the session has a
    piece of its virtual machine's. All descriptors are borrowed. Raises PortError.
    """
    cuda = grant.kind is SessionKind.CUDA
    shared = cuda and grant.transport is TransportKind.SHM
    usage_fd = ports.store.create_usage(session.id)
    window_fd = exchange_fd = None
    pages: list[tuple[int, int, int]] = []
    try:
        pages = allocations.open(session)
        window_fd = ports.windows.create(grant.window_bytes) if shared else None
        exchange_fd = ports.exchange.join(session.id, session.tenant) if cuda else None
        return ports.workers.start(
            WorkerOrder(
                session_id=session.id,
                socket_fd=sockets[0],
                lane_fds=sockets[1:],
                asked_lanes=asked_lanes,
                window_fd=window_fd if vm_window_fd is None else vm_window_fd,
                usage_fd=usage_fd,
                client_pidfd=client_pidfd,
                transport=session.transport,
                window_base=grant.window_base,
                window_bytes=grant.window_bytes,
                window_offset=session.window_offset,
                library=grant.library,
                devices=session.devices,
                compute_percent=session.compute_percent,
                memory_mib=session.memory_mib,
                caps=grant.caps,
                exchange_fd=exchange_fd,
                tenant=session.tenant_number,
                kind=grant.kind,
                quota_fds=tuple(quota for quota, _, _ in pages),
                account_fds=tuple(account for _, account, _ in pages),
                lease_fds=tuple(lease for _, _, lease in pages),
                vgpu_rows=tuple(seat.vgpu_row for seat in session.seats),
                account_rows=tuple(seat.account_row for seat in session.seats),
            )
        )
    finally:
        allocations.close(pages)
        ports.store.close_usage(usage_fd)
        if exchange_fd is not None:
            ports.exchange.close(exchange_fd)
        if window_fd is not None:
            ports.windows.close(window_fd)
