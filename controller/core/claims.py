"""On-demand vGPUs: a client comes to a node, its vGPU gets room there; the last one gone, it does
not hold anything. Each function is one change (see ports).
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace

from gpupool.controller.core import allocation, session
from gpupool.controller.core.errors import Kind, RefusedError, not_found
from gpupool.controller.core.licence import Licence
from gpupool.controller.core.node import DesiredVgpu, Session
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.scheduler import Candidate, Wanted
from gpupool.controller.core.vgpu import Mode, Share, State, Vgpu


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A client on a node wants to use a vGPU, by id, or by name within a tenant."""

    node_id: str
    session_id: str
    vgpu: str
    tenant_id: str = ""  # for a name
    after_sequence: int = 0  # the last report that was made before
    program: str = ""
    other_gpus: tuple[str, ...] = ()  # UUIDs: where the client's other vGPUs are


def claim(tables: Tables, request: ClaimRequest, licence: Licence) -> DesiredVgpu:
    """The vGPU as the node should run it, from now on. The same call again answers the same.

    Raises RefusedError: no such vGPU, no room on this node (NO_ROOM: the client may wait), or it is
    on another node (IN_USE).
    """
    vgpu = _find(tables, request)
    if vgpu.state is State.DELETING:
        raise RefusedError(Kind.IN_USE, f"vGPU {vgpu.name!r} is being deleted.")
    if vgpu.node_id is not None and vgpu.node_id != request.node_id:
        raise RefusedError(
            Kind.IN_USE,
            f"vGPU {vgpu.name!r} is on node {vgpu.node_name!r}: connect there.",
            {"node": vgpu.node_name},
        )
    if vgpu.node_id is None:
        vgpu = _place(tables, vgpu, request, licence)
    tables.sessions.put(
        Session(
            id=request.session_id,
            node_id=request.node_id,
            node_name=vgpu.node_name or "",
            vgpu_id=vgpu.id,
            gpu_id=vgpu.gpu_id,
            tenant_id=vgpu.tenant_id,
            program=request.program,
            started_ms=tables.now_ms,
            confirmed=False,
        ),
        request.after_sequence,
    )
    return as_desired(vgpu)


def _find(tables: Tables, request: ClaimRequest) -> Vgpu:
    vgpu = tables.vgpus.get(request.vgpu)
    if vgpu is None and request.tenant_id:
        vgpu = tables.vgpus.by_name(request.tenant_id, request.vgpu)
    if vgpu is None or (request.tenant_id and vgpu.tenant_id != request.tenant_id):
        raise not_found("vgpu", request.vgpu)
    return vgpu


def _place(tables: Tables, vgpu: Vgpu, request: ClaimRequest, licence: Licence) -> Vgpu:
    node_id = request.node_id
    licence.check(tables.now_ms)
    share = vgpu.share
    allocation.charge(tables, vgpu.tenant_id, allocation.use_of([share], 0), [share])
    wanted = Wanted(share, vgpu.selector, vgpu.strategy, node_ids=(node_id,))
    try:
        place = _hold(tables, wanted, request.other_gpus)
    except allocation.NoRoomError:
        raise RefusedError(
            Kind.NO_ROOM,
            f"No GPU of this node has room for {share.compute_percent} % and {share.memory_mib} "
            f"MiB of vGPU {vgpu.name!r} now. Wait, or connect to another node.",
        ) from None
    generation = tables.nodes.bump(node_id)
    placed = replace(allocation.at(vgpu, place, generation), version=vgpu.version + 1)
    tables.vgpus.put(placed)
    allocation.tell(tables, placed, "claimed", f"vGPU {vgpu.name} has a client")
    return placed


def _hold(tables: Tables, wanted: Wanted, other_gpus: Collection[str]) -> Candidate:
    """Room on another GPU than those, else on one of them: hostd, which knows what the client may
    have, says no then. Raises NoRoomError.
    """
    if other_gpus:
        (node_id,) = wanted.node_ids
        others = (gpu.id for gpu in tables.gpus.of_node(node_id) if gpu.uuid in other_gpus)
        with suppress(allocation.NoRoomError):
            return allocation.hold_best(tables, replace(wanted, not_gpus=tuple(others)))
    return allocation.hold_best(tables, wanted)


def release(tables: Tables, node_id: str, session_id: str, vgpu_id: str = "") -> None:
    """The client is gone, from one vGPU or from all. Known already: nothing happens."""
    for one in tables.sessions.of_node(node_id):
        if one.id == session_id and vgpu_id in ("", one.vgpu_id):
            end_session(tables, one)


def end_session(tables: Tables, gone: Session) -> None:
    """Removes a session, and what its on-demand vGPU holds when it was the last."""
    session.over(tables, gone)
    vgpu = tables.vgpus.get(gone.vgpu_id) if gone.vgpu_id else None
    if vgpu is None or vgpu.mode is Mode.RESERVED or vgpu.node_id != gone.node_id:
        return
    if not tables.sessions.of_vgpu(vgpu.id):
        idle(tables, vgpu)


def idle(tables: Tables, vgpu: Vgpu) -> Vgpu:
    """An on-demand vGPU without clients: gives back what it holds; goes if it is being deleted."""
    if vgpu.state is State.DELETING:
        allocation.gone(tables, vgpu)
        return vgpu
    allocation.let_go(tables, vgpu)
    if vgpu.node_id is not None:
        tables.nodes.bump(vgpu.node_id)
    idled = replace(
        vgpu,
        state=State.IDLE,
        held=Share(0, 0),
        gpu_id=None,
        gpu_uuid=None,
        node_id=None,
        node_name=None,
        endpoint=None,
        memory_used_mib=0,
        version=vgpu.version + 1,
    )
    tables.vgpus.put(idled)
    allocation.tell(tables, idled, "released", f"vGPU {vgpu.name} has no client")
    return idled


def as_desired(vgpu: Vgpu) -> DesiredVgpu:
    """What a node is told of a vGPU that is placed."""
    return DesiredVgpu(
        id=vgpu.id,
        name=vgpu.name,
        tenant_id=vgpu.tenant_id,
        gpu_uuid=vgpu.gpu_uuid or "",
        mode=vgpu.mode,
        policy=vgpu.policy,
        priority=vgpu.priority,
        share=vgpu.share,
    )
