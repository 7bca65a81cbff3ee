"""Giving out, changing and taking back vGPUs. Each function is one change (see ports)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpupool.controller.core import scheduler, session
from gpupool.controller.core.errors import Kind, RefusedError, not_found
from gpupool.controller.core.event import Event
from gpupool.controller.core.identity import new_id
from gpupool.controller.core.licence import Licence
from gpupool.controller.core.operation import Operation, OperationState
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.scheduler import Candidate, Wanted
from gpupool.controller.core.tenant import Tenant, Use, over_quota
from gpupool.controller.core.vgpu import Ask, Change, Mode, Request, Share, State, Vgpu

CANDIDATES = 16  # so many are scored
_GROUP_NODES = 16  # whose GPUs are looked at together
_GROUP_BATCHES = 64
_GROUP_CANDIDATES = 1024
_NOTHING = Share(0, 0)


class NoRoomError(RefusedError):
    """Nothing fits. Why is worked out afterwards, outside the transaction: see `explain`."""

    def __init__(self) -> None:
        super().__init__(Kind.NO_ROOM, "Nothing has room for it.")


def create(tables: Tables, request: Request, licence: Licence) -> list[Vgpu]:
    """All vGPUs of a request, or RefusedError and none.

    Raises NoRoomError where no GPU has room.
    """
    licence.check(tables.now_ms)
    reserved = request.asks[0].mode is Mode.RESERVED
    shares = [ask.share for ask in request.asks]
    charge(tables, request.tenant_id, use_of(shares if reserved else [], len(shares)), shares)
    places: Sequence[Candidate | None] = [None] * len(shares)
    if reserved:
        places = _place(tables, request, shares)
    group_id = new_id("group", tables.now_ms) if len(shares) > 1 else None
    node_ids = sorted({place.node_id for place in places if place is not None})
    generations = {node_id: tables.nodes.bump(node_id) for node_id in node_ids}
    made = []
    for ask, place in zip(request.asks, places, strict=True):
        vgpu = draft(request, ask, tables.now_ms, group_id)
        if place is not None:
            vgpu = at(vgpu, place, generations[place.node_id])
        tables.vgpus.add(vgpu)
        tables.journal.emit(creation(vgpu))
        made.append(vgpu)
    return made


def draft(request: Request, ask: Ask, now_ms: int, group_id: str | None = None) -> Vgpu:
    """A vGPU before it has a place."""
    return Vgpu(
        id=new_id("vgpu", now_ms),
        name=ask.name,
        tenant_id=request.tenant_id,
        mode=ask.mode,
        policy=ask.policy,
        priority=ask.priority,
        share=ask.share,
        state=State.IDLE,
        selector=request.selector,
        strategy=request.strategy,
        group_id=group_id,
        created_ms=now_ms,
    )


def at(vgpu: Vgpu, place: Candidate, generation: int) -> Vgpu:
    """The vGPU on that GPU, whose room has been set aside."""
    return replace(
        vgpu,
        state=State.PLACED,
        held=vgpu.share,
        gpu_id=place.gpu_id,
        gpu_uuid=place.gpu_uuid,
        node_id=place.node_id,
        node_name=place.node_name,
        endpoint=place.endpoint,
        generation=generation,
    )


def creation(vgpu: Vgpu) -> Event:
    """What is told of a new one."""
    return _event(vgpu, "created", f"vGPU {vgpu.name} was created")


def tell(tables: Tables, vgpu: Vgpu, what: str, message: str) -> None:
    """An event of a vGPU."""
    tables.journal.emit(_event(vgpu, what, message))


def _event(vgpu: Vgpu, what: str, message: str) -> Event:
    facts = {"name": vgpu.name, "state": vgpu.state.value}
    if vgpu.gpu_uuid is not None:
        facts |= {"gpu": vgpu.gpu_uuid, "node": vgpu.node_name or ""}
    return Event(f"vgpu.{what}", vgpu.id, message, vgpu.tenant_id, vgpu.node_id, facts)


def charge(
    tables: Tables, tenant_id: str, use: Use, shares: Sequence[Share], *, force: bool = False
) -> None:
    """Adds to what a tenant holds. Raises RefusedError when its quota does not allow it."""
    charged = tables.tenants.charge(tenant_id, use, force=force)
    tenant: Tenant | None = None
    unlimited = any(share.memory_mib == 0 for share in shares)
    if not charged or unlimited:
        tenant = tables.tenants.get(tenant_id)
        if tenant is None:
            raise not_found("tenant", tenant_id)
        if not charged:
            raise over_quota(tenant, use)
    if tenant is not None and unlimited and tenant.quota.memory_mib is not None:
        raise RefusedError(
            Kind.QUOTA,
            f"Tenant {tenant.name!r} has a quota of memory, so each of its vGPUs needs a limit: "
            "memory_mib 0 is not allowed.",
        )


def use_of(shares: Sequence[Share], vgpus: int) -> Use:
    """What so many vGPUs with these shares count."""
    return Use(
        vgpus,
        sum(share.compute_percent for share in shares),
        sum(share.memory_mib for share in shares),
    )


def _place(tables: Tables, request: Request, shares: Sequence[Share]) -> list[Candidate]:
    if len(shares) > 1 and request.same_node:
        places = _place_together(tables, request, shares)
    else:
        places = []
        for share in shares:
            taken = tuple(place.gpu_id for place in places) if request.distinct_gpus else ()
            wanted = Wanted(share, request.selector, request.strategy, not_gpus=taken)
            places.append(hold_best(tables, wanted))
        return places
    for place, share in zip(places, shares, strict=True):
        if not tables.gpus.hold(place.gpu_id, share):
            raise NoRoomError
    return places


def hold_best(tables: Tables, wanted: Wanted) -> Candidate:
    """Sets a share aside on the best GPU. Raises NoRoomError."""
    found = tables.gpus.candidates(wanted, CANDIDATES)
    place = scheduler.best(found, wanted.share, wanted.strategy)
    # The condition of the update is what forbids giving out too much; the query only chooses.
    if place is None or not tables.gpus.hold(place.gpu_id, wanted.share):
        raise NoRoomError
    return place


def _place_together(tables: Tables, request: Request, shares: Sequence[Share]) -> list[Candidate]:
    least = Share(
        min(share.compute_percent for share in shares), min(share.memory_mib for share in shares)
    )
    wanted = Wanted(least, request.selector, request.strategy)
    needed = len(shares) if request.distinct_gpus else 1
    node_ids = tables.gpus.nodes_with(wanted, needed, _GROUP_NODES * _GROUP_BATCHES)
    for start in range(0, len(node_ids), _GROUP_NODES):
        some = replace(wanted, node_ids=tuple(node_ids[start : start + _GROUP_NODES]))
        found = tables.gpus.candidates(some, _GROUP_CANDIDATES)
        places = scheduler.best_group(
            found, shares, request.strategy, distinct=request.distinct_gpus
        )
        if places is not None:
            return places
    raise NoRoomError


def explain(tables: Tables, request: Request, *, operator: bool, nodes: int = 20) -> RefusedError:
    """Why nothing had room. A read of its own: the refused change does not wait for it."""
    shares = [ask.share for ask in request.asks]
    hardest = max(shares, key=lambda share: (share.compute_percent, share.memory_mib))
    wanted = Wanted(hardest, request.selector, request.strategy)
    return scheduler.refusal(
        shares,
        tables.gpus.shortfalls(wanted),
        tables.gpus.shortfalls(wanted, by_node=nodes) if operator else [],
        same_node=request.same_node,
    )


def resize(tables: Tables, vgpu: Vgpu, change: Change, licence: Licence) -> Vgpu:
    """Another share, policy or priority, on the same GPU and while clients run.

    Growing takes room at once or is refused. What shrinking frees stays set aside until the node
    says that it has done it, so nobody can be given it too early.
    """
    if vgpu.state is State.DELETING:
        raise RefusedError(Kind.IN_USE, f"vGPU {vgpu.name!r} is being deleted.")
    new = Share(
        vgpu.share.compute_percent if change.compute_percent is None else change.compute_percent,
        vgpu.share.memory_mib if change.memory_mib is None else change.memory_mib,
    )
    if 0 < new.memory_mib < vgpu.memory_used_mib:
        raise RefusedError(
            Kind.IN_USE,
            f"vGPU {vgpu.name!r} uses {vgpu.memory_used_mib} MiB; its quota cannot become "
            f"{new.memory_mib} MiB before its programs free some.",
            {"memory_used_mib": vgpu.memory_used_mib},
        )
    held = vgpu.held
    if vgpu.gpu_id is not None:
        held = Share(
            max(held.compute_percent, new.compute_percent), max(held.memory_mib, new.memory_mib)
        )
        more = Share(
            held.compute_percent - vgpu.held.compute_percent,
            held.memory_mib - vgpu.held.memory_mib,
        )
        if more != _NOTHING:
            licence.check(tables.now_ms)
            charge(tables, vgpu.tenant_id, use_of([more], 0), [new])
            if not tables.gpus.hold(vgpu.gpu_id, more, usable=False):
                raise _cannot_grow(tables, vgpu, more)
    changed = replace(
        vgpu,
        share=new,
        held=held,
        policy=change.policy or vgpu.policy,
        priority=vgpu.priority if change.priority is None else change.priority,
        generation=tables.nodes.bump(vgpu.node_id) if vgpu.node_id is not None else 0,
        version=vgpu.version + 1,
    )
    tables.vgpus.put(changed)
    tell(tables, changed, "resized", f"vGPU {vgpu.name} was changed")
    return changed


def _cannot_grow(tables: Tables, vgpu: Vgpu, more: Share) -> RefusedError:
    gpu = tables.gpus.get(vgpu.gpu_id or "")
    compute, memory = (gpu.compute_free_percent, gpu.memory_free_mib) if gpu else (0, 0)
    return RefusedError(
        Kind.NO_ROOM,
        f"Its GPU has no room for {more.compute_percent} % and {more.memory_mib} MiB more: "
        f"{max(compute, 0)} % and {max(memory, 0)} MiB are free. Ask for less, or make a new vGPU.",
        {"compute_free_percent": max(compute, 0), "memory_free_mib": max(memory, 0)},
    )


def delete(tables: Tables, vgpu: Vgpu) -> Operation:
    """Takes it back. Its share is free when the node says that it is gone."""
    running = [one for one in tables.operations.running(vgpu.id) if one.kind == "vgpu.delete"]
    if running:
        return running[0]
    operation = Operation(
        id=new_id("operation", tables.now_ms),
        kind="vgpu.delete",
        subject=vgpu.id,
        tenant_id=vgpu.tenant_id,
        created_ms=tables.now_ms,
        updated_ms=tables.now_ms,
    )
    if vgpu.node_id is None:
        tables.operations.add(replace(operation, state=OperationState.DONE, progress_percent=100))
        gone(tables, vgpu)
        return replace(operation, state=OperationState.DONE, progress_percent=100)
    generation = tables.nodes.bump(vgpu.node_id)
    deleting = replace(vgpu, state=State.DELETING, generation=generation, version=vgpu.version + 1)
    tables.vgpus.put(deleting)
    waiting = replace(operation, message=f"waits for node {vgpu.node_name} to end it")
    tables.operations.add(waiting)
    tell(tables, deleting, "deleting", f"vGPU {vgpu.name} is being deleted")
    return waiting


def let_go(tables: Tables, vgpu: Vgpu) -> None:
    """Gives back what it holds; the vGPU itself stays."""
    if vgpu.gpu_id is not None and vgpu.held != _NOTHING:
        tables.gpus.unhold(vgpu.gpu_id, vgpu.held)
        tables.tenants.refund(vgpu.tenant_id, use_of([vgpu.held], 0))


def gone(tables: Tables, vgpu: Vgpu) -> None:
    """The node no longer has it, or never had: everything of it is free."""
    let_go(tables, vgpu)
    for one in tables.sessions.of_vgpu(vgpu.id):
        session.over(tables, one)
    tables.vgpus.remove(vgpu.id)
    tables.tenants.refund(vgpu.tenant_id, Use(vgpus=1))
    for operation in tables.operations.running(vgpu.id):
        tables.operations.end(operation.id, OperationState.DONE, "")
    tell(tables, vgpu, "deleted", f"vGPU {vgpu.name} was deleted")


def shrunk(tables: Tables, vgpu: Vgpu) -> Vgpu:
    """The node has put the smaller share into effect: the rest is free."""
    if vgpu.gpu_id is None or vgpu.held == vgpu.share:
        return vgpu
    less = Share(
        vgpu.held.compute_percent - vgpu.share.compute_percent,
        vgpu.held.memory_mib - vgpu.share.memory_mib,
    )
    tables.gpus.unhold(vgpu.gpu_id, less)
    tables.tenants.refund(vgpu.tenant_id, use_of([less], 0))
    return replace(vgpu, held=vgpu.share)
