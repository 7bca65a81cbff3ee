"""Nodes: they come, say what they have, fall silent and come back. One change a function (see
ports).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpupool.controller.core import allocation, claims
from gpupool.controller.core.errors import Kind, RefusedError, not_found
from gpupool.controller.core.event import Event
from gpupool.controller.core.gpu import Gpu, GpuReport, Pool
from gpupool.controller.core.identity import new_id
from gpupool.controller.core.licence import Licence
from gpupool.controller.core.node import (
    Desired,
    DesiredPool,
    Node,
    NodeState,
    Registered,
    Registration,
    Report,
    Reported,
    Session,
    SessionReport,
)
from gpupool.controller.core.operation import Operation, OperationState
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.tenant import check_name
from gpupool.controller.core.vgpu import Mode, Share, State, Vgpu, VgpuReport


def register(tables: Tables, registration: Registration, licence: Licence) -> Registered:
    """A hostd has come, for the first time or again. It is heard from now on.

    Raises RefusedError when the registration cannot be (a bad name, a card twice).
    """
    check_name(registration.name)
    uuids = [gpu.uuid for gpu in registration.gpus]
    if len(set(uuids)) != len(uuids):
        raise RefusedError(Kind.INVALID, f"Node {registration.name!r} names a GPU twice.")
    before = tables.nodes.by_name(registration.name)
    node = replace(
        before
        or Node(id=new_id("node", tables.now_ms), name=registration.name, created_ms=tables.now_ms),
        labels=dict(registration.labels),
        endpoint=registration.endpoint,
        agent_version=registration.agent_version,
        incarnation=before.incarnation + 1 if before else 1,
        version=before.version + 1 if before else 1,
        heard_ms=tables.now_ms,
    )
    tables.nodes.put(node)
    tables.nodes.start_incarnation(node.id, node.incarnation)
    _put_gpus(tables, node, registration)
    beyond = tables.gpus.licence(licence.gpus)
    tables.gpus.refresh(node.id)
    if before is None:
        _tell(tables, node, "registered", f"node {node.name} came with {len(uuids)} GPUs")
    if beyond:
        _tell(tables, node, "unlicensed", f"{beyond} GPUs are beyond the licence")
    return Registered(node.id, node.incarnation, tables.nodes.generations([node.id])[node.id])


def _put_gpus(tables: Tables, node: Node, registration: Registration) -> None:
    known = {gpu.uuid: gpu for gpu in tables.gpus.of_node(node.id)}
    for facts in registration.gpus:
        old = known.pop(facts.uuid, None)
        base = old or Gpu(
            id=new_id("gpu", tables.now_ms),
            uuid=facts.uuid,
            node_id=node.id,
            node_name=node.name,
            position=facts.position,
            model=facts.model,
            memory_mib=facts.memory_mib,
            pool=facts.pool,
            pool_wanted=Pool.NATIVE if facts.pool is Pool.NATIVE else Pool.POOLED,
        )
        tables.gpus.put(
            replace(
                base,
                position=facts.position,
                model=facts.model,
                memory_mib=facts.memory_mib,
                healthy=facts.healthy,
                pool=facts.pool,
                present=True,
            )
        )
    for missing in known.values():
        if missing.present:
            tables.gpus.put(replace(missing, present=False, version=missing.version + 1))
            _tell(tables, node, "gpu-missing", f"GPU {missing.uuid} is no longer in {node.name}")


def desired(tables: Tables, node_id: str) -> Desired:
    """All that the node should have now. Raises RefusedError where there is no such node."""
    generation = tables.nodes.generations([node_id]).get(node_id)
    if generation is None:
        raise not_found("node", node_id)
    every = tables.vgpus.of_node(node_id)
    vgpus = [vgpu for vgpu in every if vgpu.state is not State.DELETING]
    deleting = tuple(vgpu.id for vgpu in every if vgpu.state is State.DELETING)
    pools = [
        DesiredPool(gpu.uuid, gpu.pool_wanted, gpu.pool_deadline_s)
        for gpu in tables.gpus.of_node(node_id)
        if gpu.present
    ]
    return Desired(
        generation, tuple(claims.as_desired(vgpu) for vgpu in vgpus), tuple(pools), deleting
    )


def report(tables: Tables, told: Report) -> Reported:
    """Takes over what a node says that it has. Old and repeated reports change nothing."""
    node = tables.nodes.get(told.node_id)
    if node is None or node.incarnation != told.incarnation:
        return Reported(accepted=False, known=False, generation=0)
    if not tables.nodes.next_report(node.id, told.incarnation, told.sequence):
        generation = tables.nodes.generations([node.id])[node.id]
        return Reported(accepted=False, known=True, generation=generation)
    # A node cannot be ahead of what it was told; a wrong number must not free what is held.
    applied = min(told.applied_generation, node.generation)
    if applied > node.applied_generation:
        tables.nodes.applied(node.id, applied)
    came_back = node.state is NodeState.LOST
    if came_back:
        tables.nodes.set_state(node.id, NodeState.READY)
        _tell(tables, node, "back", f"node {node.name} is back")
    others = _take_gpus(tables, node, told)
    _take_vgpus(tables, node, told, applied)
    _take_sessions(tables, node, told, came_back=came_back)
    if others or came_back:
        tables.gpus.refresh(node.id)
    generation = tables.nodes.generations([node.id])[node.id]
    return Reported(accepted=True, known=True, generation=generation)


def _take_gpus(tables: Tables, node: Node, told: Report) -> bool:
    """Whether any is another now."""
    known = {gpu.uuid: gpu for gpu in tables.gpus.of_node(node.id)}
    running = tables.operations.running_any([gpu.id for gpu in known.values()])
    others = False
    for facts in told.gpus:
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
            _tell(tables, node, "gpu-pool", f"GPU {gpu.uuid} is now {new.pool.value}")
        if new.healthy != gpu.healthy:
            health = "healthy" if new.healthy else "unhealthy"
            _tell(tables, node, "gpu-health", f"GPU {gpu.uuid} is {health}")
    return others


def _end_switch(tables: Tables, gpu: Gpu, facts: GpuReport, running: Sequence[Operation]) -> None:
    if facts.pool is not gpu.pool_wanted and not facts.pool_error:
        return
    for operation in running:
        failed = facts.pool is not gpu.pool_wanted
        state = OperationState.FAILED if failed else OperationState.DONE
        tables.operations.end(operation.id, state, facts.pool_error if failed else "")


def _take_vgpus(tables: Tables, node: Node, told: Report, applied: int) -> None:
    there = {vgpu.id: vgpu for vgpu in told.vgpus}
    used_mib = {}  # of its own vGPUs, whatever ids it names, and only where that has changed
    for vgpu in tables.vgpus.of_node(node.id):
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


def _take_sessions(tables: Tables, node: Node, told: Report, *, came_back: bool) -> None:
    known = {(one.id, one.vgpu_id): one for one in tables.sessions.of_node(node.id)}
    gpus = {gpu.uuid: gpu.id for gpu in tables.gpus.of_node(node.id)} if told.sessions else {}
    for facts in told.sessions:
        old = known.pop((facts.id, facts.vgpu_id), None)
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
    for session in known.values():
        if session.confirmed or told.sequence > tables.sessions.claimed_after(session):
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


def lose(tables: Tables, node_id: str, beat: int) -> bool:
    """Marks a node as lost, unless it has been heard since. False: it has, or it was lost before.

    On-demand vGPUs are free to be placed elsewhere; reserved ones stay and are reported.
    """
    if tables.nodes.beats().get(node_id) != beat:
        return False
    node = tables.nodes.get(node_id)
    if node is None:
        return False
    tables.nodes.set_state(node_id, NodeState.LOST)
    _tell(tables, node, "lost", f"node {node.name} is silent")
    tables.gpus.refresh(node_id)
    for session in tables.sessions.of_node(node_id):
        tables.sessions.remove(session)
    for vgpu in tables.vgpus.of_node(node_id):
        if vgpu.state is State.DELETING:
            continue
        if vgpu.mode is Mode.ON_DEMAND:
            claims.idle(tables, vgpu)
        else:
            lost = replace(vgpu, state=State.LOST, version=vgpu.version + 1)
            tables.vgpus.put(lost)
            allocation.tell(tables, lost, "lost", f"the node of vGPU {vgpu.name} is silent")
    return True


def switch_pool(tables: Tables, gpu: Gpu, pool: Pool, deadline_s: int | None) -> Operation:
    """Asks a node to move a GPU to the other pool."""
    if pool is Pool.DRAINING:
        raise RefusedError(Kind.INVALID, "A GPU can be sent to 'pooled' or 'native'.")
    for old in tables.operations.running(gpu.id):
        tables.operations.end(old.id, OperationState.FAILED, "another switch was asked for")
    done = gpu.pool is pool
    operation = Operation(
        id=new_id("operation", tables.now_ms),
        kind="gpu.pool",
        subject=gpu.id,
        state=OperationState.DONE if done and gpu.pool_wanted is pool else OperationState.RUNNING,
        progress_percent=100 if done and gpu.pool_wanted is pool else 0,
        created_ms=tables.now_ms,
        updated_ms=tables.now_ms,
    )
    tables.operations.add(operation)
    new = replace(gpu, pool_wanted=pool, pool_deadline_s=deadline_s, version=gpu.version + 1)
    tables.gpus.put(new)
    tables.gpus.refresh(gpu.node_id)
    tables.nodes.bump(gpu.node_id)
    tables.journal.emit(
        Event("gpu.switching", gpu.id, f"GPU {gpu.uuid} goes to {pool.value}", None, gpu.node_id)
    )
    return operation


def remove(tables: Tables, node: Node) -> None:
    """Forgets a node that is lost and will not come back, with every vGPU on it.

    Raises RefusedError while it is heard: its programs would go on, on room nobody counts.
    """
    if node.state is not NodeState.LOST:
        raise RefusedError(
            Kind.IN_USE, f"Node {node.name!r} is still heard. Stop its hostd first, then wait 30 s."
        )
    for vgpu in tables.vgpus.of_node(node.id):
        allocation.gone(tables, vgpu)
    for session in tables.sessions.of_node(node.id):
        tables.sessions.remove(session)
    for gpu in tables.gpus.of_node(node.id):
        for operation in tables.operations.running(gpu.id):
            tables.operations.end(operation.id, OperationState.FAILED, "the node was removed")
    tables.gpus.remove_node(node.id)
    tables.nodes.remove(node.id)
    _tell(tables, node, "removed", f"node {node.name} was removed")


def _tell(tables: Tables, node: Node, what: str, message: str) -> None:
    tables.journal.emit(Event(f"node.{what}", node.id, message, None, node.id, {"name": node.name}))
