"""What nodes say that they have: whole pictures, and differences between them. One change a
function (see ports).

A difference leaves nothing to guess: whatever has not settled yet (a vGPU that was placed, resized
or deleted, a claim without a session, a GPU between pools) has to be spoken of in it. Where it is
not, nothing is done, and the node is asked for a whole picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from gpupool.controller.core import allocation, claims, drain
from gpupool.controller.core.fleet import tell
from gpupool.controller.core.gpu import Gpu, GpuReport
from gpupool.controller.core.node import (
    Changes,
    Drain,
    Node,
    NodeState,
    Report,
    Reported,
    Session,
    SessionReport,
)
from gpupool.controller.core.operation import Operation, OperationState
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.vgpu import Mode, Share, State, Vgpu, VgpuReport

_PLAIN_VGPUS = 256  # of one node, where it goes with others: a statement takes so many values
_UNKNOWN = Reported(accepted=False, known=False, generation=0)


def report(tables: Tables, told: Report) -> Reported:
    """Takes over what a node says that it has. Old and repeated reports change nothing."""
    node = tables.nodes.get(told.node_id)
    if node is None or node.incarnation != told.incarnation:
        return _UNKNOWN
    if not tables.nodes.next_report(node.id, told.incarnation, told.sequence):
        return _not_taken(node)
    applied = _take_generation(tables, node, told.applied_generation)
    came_back = node.state is NodeState.LOST
    if came_back:
        tables.nodes.set_state(node.id, NodeState.READY)
        tell(tables, node, "back", f"node {node.name} is back")
    others = _take_gpus(tables, node, told.gpus)
    there = {vgpu.id: vgpu for vgpu in told.vgpus}
    _take_vgpus(tables, tables.vgpus.of_node(node.id), there, applied)
    known = _sessions(tables, node)
    _take_sessions(tables, node, told.sessions, known, came_back=came_back)
    named = {(one.id, one.vgpu_id) for one in told.sessions}
    gone = [session for key, session in known.items() if key not in named]
    _end_sessions(tables, gone, told.sequence)
    if others or came_back:
        tables.gpus.refresh(node.id)
    if node.drain is Drain.DRAINING:
        drain.settle(tables, node.id)
    return _taken(tables, node)


def changes_of(tables: Tables, told: Sequence[Changes]) -> list[Reported]:
    """Differences of several nodes, one of each. Most say that vGPUs are there which were placed,
    and nothing else: these are taken over together, with as many questions as one needs.
    """
    plain = [one for one in told if _is_plain(one)]
    confirmed = _confirm(tables, plain) if len(plain) > 1 else {}
    return [confirmed.get(one.node_id) or changes(tables, one) for one in told]


def _is_plain(told: Changes) -> bool:
    others = told.gpus or told.vgpus_gone or told.sessions or told.sessions_gone
    return not others and len(told.vgpus) <= _PLAIN_VGPUS


def _confirm(tables: Tables, told: Sequence[Changes]) -> dict[str, Reported]:
    """What becomes of those that only confirm; `changes` decides about all others."""
    nodes = tables.nodes.some([one.node_id for one in told])
    busy = tables.nodes.with_open_claims(nodes.keys()) | tables.gpus.arriving(nodes.keys())
    open_vgpus: dict[str, list[Vgpu]] = {}
    for vgpu in tables.vgpus.unsettled(nodes.keys(), [key.id for one in told for key in one.vgpus]):
        open_vgpus.setdefault(vgpu.node_id or "", []).append(vgpu)
    found: dict[str, Reported] = {}
    ready: list[str] = []
    used_mib: dict[str, int] = {}
    taken: list[tuple[Changes, int]] = []
    for one in told:
        node = nodes.get(one.node_id)
        its = open_vgpus.get(one.node_id, [])
        if node is None or node.id in busy or not _only_confirms(node, one, its):
            continue
        there = {vgpu.id: vgpu for vgpu in one.vgpus}
        for vgpu in its:
            if vgpu.id in there and vgpu.state is State.PLACED:
                ready.append(vgpu.id)
            if vgpu.id in there and there[vgpu.id].memory_used_mib != vgpu.memory_used_mib:
                used_mib[vgpu.id] = there[vgpu.id].memory_used_mib
        taken.append((one, max(node.applied_generation, _applied(node, one))))
        found[node.id] = Reported(accepted=True, known=True, generation=node.generation)
    tables.nodes.took(taken)
    tables.vgpus.set_ready(ready)
    if used_mib:
        tables.vgpus.set_used(used_mib)
    return found


def _only_confirms(node: Node, told: Changes, open_vgpus: Sequence[Vgpu]) -> bool:
    """Whether `changes` would take it over, and do no more than mark vGPUs as ready."""
    return (
        node.incarnation == told.incarnation
        and node.state is NodeState.READY
        and node.drain is not Drain.DRAINING
        and told.since == node.sequence < told.sequence
        and _all_named(open_vgpus, {one.id for one in told.vgpus}, _applied(node, told))
        and all(
            one.state in (State.PLACED, State.READY) and one.held == one.share for one in open_vgpus
        )
    )


def _applied(node: Node, told: Changes) -> int:
    return min(told.applied_generation, node.generation)


def changes(tables: Tables, told: Changes) -> Reported:
    """The same of one difference. `whole`: nothing was done, only a whole picture will do."""
    node = tables.nodes.get(told.node_id)
    if node is None or node.incarnation != told.incarnation:
        return _UNKNOWN
    if told.sequence <= node.sequence:
        return _not_taken(node)
    whole = replace(_not_taken(node), whole=True)
    # While it was silent, its clients' vGPUs were let go: what is so still says too little.
    if told.since != node.sequence or node.state is NodeState.LOST:
        return whole
    there = {vgpu.id: vgpu for vgpu in told.vgpus}
    named = [*there, *told.vgpus_gone]
    applied = _applied(node, told)
    open_vgpus = tables.vgpus.unsettled([node.id], named)
    known = _sessions(tables, node)
    if (
        not _all_named(open_vgpus, set(named), applied)
        or not _all_claims_named(tables, told, known)
        or tables.gpus.arrived(node.id) - {gpu.uuid for gpu in told.gpus}
    ):
        return whole
    if not tables.nodes.next_report(node.id, told.incarnation, told.sequence):
        return whole
    _take_generation(tables, node, told.applied_generation)
    others = bool(told.gpus) and _take_gpus(tables, node, told.gpus)
    _take_vgpus(tables, [one for one in open_vgpus if one.id in named], there, applied)
    if told.vgpus_gone:
        known = _sessions(tables, node)  # those of a deleted one have gone with it
    _take_sessions(tables, node, told.sessions, known, came_back=False)
    gone = [known[key] for key in told.sessions_gone if key in known]
    _end_sessions(tables, gone, told.sequence)
    if others:
        tables.gpus.refresh(node.id)
    if node.drain is Drain.DRAINING:
        drain.settle(tables, node.id)
    return _taken(tables, node)


def _all_named(open_vgpus: Sequence[Vgpu], named: set[str], applied: int) -> bool:
    """Whether nothing that the node has put into effect by now is passed over."""
    return all(
        one.id in named or (one.state is not State.LOST and applied < one.generation)
        for one in open_vgpus
    )


def _all_claims_named(
    tables: Tables, told: Changes, known: Mapping[tuple[str, str], Session]
) -> bool:
    named = {(one.id, one.vgpu_id) for one in told.sessions} | set(told.sessions_gone)
    return all(
        session.confirmed or key in named or told.sequence <= tables.sessions.claimed_after(session)
        for key, session in known.items()
    )


def _not_taken(node: Node) -> Reported:
    return Reported(accepted=False, known=True, generation=node.generation)


def _taken(tables: Tables, node: Node) -> Reported:
    generation = tables.nodes.generations([node.id])[node.id]  # a session may have moved it
    return Reported(accepted=True, known=True, generation=generation)


def _take_generation(tables: Tables, node: Node, told: int) -> int:
    """A node cannot be ahead of what it was told; a wrong number must not free what is held."""
    applied = min(told, node.generation)
    if applied > node.applied_generation:
        tables.nodes.applied(node.id, applied)
    return applied


def _sessions(tables: Tables, node: Node) -> dict[tuple[str, str], Session]:
    return {(one.id, one.vgpu_id): one for one in tables.sessions.of_node(node.id)}


def _take_gpus(tables: Tables, node: Node, told: Sequence[GpuReport]) -> bool:
    """Whether any is another now."""
    known = {gpu.uuid: gpu for gpu in tables.gpus.of_node(node.id)}
    running = tables.operations.running_any([gpu.id for gpu in known.values()])
    others = False
    for facts in told:
        gpu = known.get(facts.uuid)
        if gpu is None:
            continue  # it came after the registration: the node registers again
        new = replace(
            gpu,
            pool=facts.pool,
            healthy=facts.healthy,
            overhead_mib=max(facts.overhead_mib, 0),
            local_compute_percent=max(facts.local_compute_percent, 0),
            local_memory_mib=max(facts.local_memory_mib, 0),
        )
        _end_switch(tables, new, facts, [one for one in running if one.subject == gpu.id])
        if new != gpu:
            others = True
            tables.gpus.put(replace(new, version=gpu.version + 1))
        if new.pool is not gpu.pool:
            tell(tables, node, "gpu-pool", f"GPU {gpu.uuid} is now {new.pool.value}")
        if new.healthy != gpu.healthy:
            health = "healthy" if new.healthy else "unhealthy"
            tell(tables, node, "gpu-health", f"GPU {gpu.uuid} is {health}")
    return others


def _end_switch(tables: Tables, gpu: Gpu, facts: GpuReport, running: Sequence[Operation]) -> None:
    if facts.pool is not gpu.pool_wanted and not facts.pool_error:
        return
    for operation in running:
        failed = facts.pool is not gpu.pool_wanted
        state = OperationState.FAILED if failed else OperationState.DONE
        tables.operations.end(operation.id, state, facts.pool_error if failed else "")


def _take_vgpus(
    tables: Tables, vgpus: Sequence[Vgpu], there: Mapping[str, VgpuReport], applied: int
) -> None:
    used_mib = {}  # of its own vGPUs, whatever ids it names, and only where that has changed
    for vgpu in vgpus:
        current = applied >= vgpu.generation
        found = there.get(vgpu.id)
        if vgpu.state is State.DELETING:
            if found is None and current:
                allocation.gone(tables, vgpu)
        elif found is not None:
            _take_vgpu(tables, vgpu, found, current=current)
            if found.memory_used_mib != vgpu.memory_used_mib:
                used_mib[vgpu.id] = found.memory_used_mib
        elif vgpu.state is State.LOST:
            tables.vgpus.put(replace(vgpu, state=State.PLACED, version=vgpu.version + 1))
    if used_mib:
        tables.vgpus.set_used(used_mib)


def _take_vgpu(tables: Tables, vgpu: Vgpu, found: VgpuReport, *, current: bool) -> None:
    new = vgpu
    if current and Share(found.compute_percent, found.memory_mib) == vgpu.share:
        new = allocation.shrunk(tables, new)
    if new.state in (State.PLACED, State.LOST):
        new = replace(new, state=State.READY)
    if new != vgpu:
        tables.vgpus.put(replace(new, version=vgpu.version + 1))
    if vgpu.state is State.LOST:
        allocation.tell(tables, new, "back", f"vGPU {vgpu.name} is back")


def _take_sessions(
    tables: Tables,
    node: Node,
    told: Sequence[SessionReport],
    known: Mapping[tuple[str, str], Session],
    *,
    came_back: bool,
) -> None:
    gpus = {gpu.uuid: gpu.id for gpu in tables.gpus.of_node(node.id)} if told else {}
    for facts in told:
        old = known.get((facts.id, facts.vgpu_id))
        if old is not None and old.confirmed:
            continue
        vgpu = tables.vgpus.get(facts.vgpu_id) if facts.vgpu_id else None
        if facts.vgpu_id and (vgpu is None or not _belongs(tables, vgpu, node, facts)):
            if came_back and vgpu is not None:
                allocation.tell(
                    tables, vgpu, "conflict", f"node {node.name} runs a client it must end"
                )
            continue
        tables.sessions.put(
            Session(
                id=facts.id,
                node_id=node.id,
                node_name=node.name,
                vgpu_id=facts.vgpu_id,
                gpu_id=gpus.get(facts.gpu_uuid),
                tenant_id=vgpu.tenant_id if vgpu else None,
                program=facts.program or (old.program if old else ""),
                started_ms=facts.started_ms or tables.now_ms,
                confirmed=True,
            )
        )


def _end_sessions(tables: Tables, gone: Iterable[Session], sequence: int) -> None:
    """Those that a report does not have, unless it was made before they were claimed."""
    for session in gone:
        if session.confirmed or sequence > tables.sessions.claimed_after(session):
            claims.end_session(tables, session)


def _belongs(tables: Tables, vgpu: Vgpu, node: Node, facts: SessionReport) -> bool:
    """Whether the vGPU is this node's. An on-demand one that nobody else has taken becomes it
    again: its client has gone on running while the node was silent.
    """
    if vgpu.node_id is not None:
        return vgpu.node_id == node.id
    if vgpu.mode is Mode.RESERVED:
        return False
    gpu = next((one for one in tables.gpus.of_node(node.id) if one.uuid == facts.gpu_uuid), None)
    if gpu is None or not tables.gpus.hold(gpu.id, vgpu.share, usable=False):
        return False
    use = allocation.use_of([vgpu.share], 0)
    # It runs already: the quota was kept when it was claimed, and refusing now would end it.
    allocation.charge(tables, vgpu.tenant_id, use, [vgpu.share], force=True)
    placed = replace(
        vgpu,
        state=State.READY,
        held=vgpu.share,
        gpu_id=gpu.id,
        gpu_uuid=gpu.uuid,
        node_id=node.id,
        node_name=node.name,
        endpoint=node.endpoint,
        generation=tables.nodes.bump(node.id),
        version=vgpu.version + 1,
    )
    tables.vgpus.put(placed)
    allocation.tell(tables, placed, "claimed", f"vGPU {vgpu.name} was found running")
    return True
