"""Nodes: they come, fall silent and come back. One change a function (see ports); what they say
that they have is in reporting.py.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from gpupool.controller.core import allocation, claims, drain, session
from gpupool.controller.core.errors import Kind, RefusedError, not_found
from gpupool.controller.core.event import Event
from gpupool.controller.core.gpu import Gpu, Pool
from gpupool.controller.core.identity import new_id
from gpupool.controller.core.licence import Licence
from gpupool.controller.core.node import (
    Desired,
    Node,
    NodeState,
    Registered,
    Registration,
)
from gpupool.controller.core.operation import Operation, OperationState
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.tenant import check_name
from gpupool.controller.core.vgpu import Mode, State


def register(tables: Tables, registration: Registration, licence: Licence) -> Registered:
    """A hostd has come, for the first time or again. It is heard from now on.

    Raises RefusedError when the registration cannot be (a bad name, a card twice, the name of
    another machine that is alive).
    """
    check_name(registration.name)
    uuids = [gpu.uuid for gpu in registration.gpus]
    if len(set(uuids)) != len(uuids):
        raise RefusedError(Kind.INVALID, f"Node {registration.name!r} names a GPU twice.")
    before = tables.nodes.by_name(registration.name)
    if before is not None and before.state is NodeState.READY:
        _check_same_machine(tables, before, set(uuids))
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
        tell(tables, node, "registered", f"node {node.name} came with {len(uuids)} GPUs")
    if beyond:
        tell(tables, node, "unlicensed", f"{beyond} GPUs are beyond the licence")
    return Registered(node.id, node.incarnation, tables.nodes.generations([node.id])[node.id])


def _check_same_machine(tables: Tables, node: Node, uuids: set[str]) -> None:
    """Two machines with one name would take each other's vGPUs away, in turns. A machine is told by
    its cards: they stay when it, its hostd or its address are others.
    """
    known = {gpu.uuid for gpu in tables.gpus.of_node(node.id) if gpu.present}
    if known and uuids and known.isdisjoint(uuids):
        raise RefusedError(
            Kind.IN_USE,
            f"Another machine, with other GPUs, is node {node.name!r}, and it is alive. Give this "
            "one another controller.node_name. If it replaces the other one: stop hostd there; "
            "when the controller says that the node is lost, this one is let in.",
        )


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
        new = replace(
            base,
            position=facts.position,
            model=facts.model,
            memory_mib=facts.memory_mib,
            healthy=facts.healthy,
            pool=facts.pool,
            present=True,
        )
        if new != old:  # hostd was restarted, and nothing else
            tables.gpus.put(new)
    for missing in known.values():
        if missing.present:
            tables.gpus.put(replace(missing, present=False, version=missing.version + 1))
            tell(tables, node, "gpu-missing", f"GPU {missing.uuid} is no longer in {node.name}")


def desired(tables: Tables, node_id: str) -> Desired:
    """All that the node should have now. Raises RefusedError where there is no such node."""
    found = desired_of(tables, [node_id]).get(node_id)
    if found is None:
        raise not_found("node", node_id)
    return found[1]


def desired_of(tables: Tables, node_ids: Collection[str]) -> dict[str, tuple[int, Desired]]:
    """The same of many, with their incarnations: as many questions as for one."""
    standings = tables.nodes.standings(node_ids)
    vgpus = tables.vgpus.desired(node_ids)
    pools = tables.gpus.desired(node_ids)
    ending = tables.sessions.ending(node_ids)
    found = {}
    for node_id, standing in standings.items():
        wanted, deleting = vgpus.get(node_id, ((), ()))
        desired = Desired(
            standing.generation,
            tuple(wanted),
            tuple(pools.get(node_id, ())),
            tuple(deleting),
            tuple(ending.get(node_id, ())),
            standing.draining,
        )
        found[node_id] = (standing.incarnation, desired)
    return found


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
    tell(tables, node, "lost", f"node {node.name} is silent")
    tables.gpus.refresh(node_id)
    for one in tables.sessions.of_node(node_id):
        session.over(tables, one, "the node is silent: nobody knows whether it has ended")
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


def cancel(tables: Tables, operation: Operation) -> Operation:
    """Gives up an operation that still runs: the GPU goes back to the pool it came from, the node
    takes clients again.

    Raises RefusedError where it has ended, or cannot be taken back.
    """
    if operation.state is not OperationState.RUNNING:
        raise RefusedError(Kind.IN_USE, f"Operation {operation.id} is {operation.state.value}.")
    if operation.kind == drain.KIND and (node := tables.nodes.get(operation.subject)):
        drain.stop(tables, node)
        return replace(operation, state=OperationState.FAILED, message="the node was undrained")
    gpu = tables.gpus.get(operation.subject)
    if operation.kind != "gpu.pool" or gpu is None:
        raise RefusedError(
            Kind.IN_USE, f"Operation {operation.id} is a {operation.kind}: it cannot be taken back."
        )
    tables.operations.end(operation.id, OperationState.FAILED, "cancelled")
    back = Pool.POOLED if gpu.pool_wanted is Pool.NATIVE else Pool.NATIVE
    new = replace(gpu, pool_wanted=back, pool_deadline_s=None, version=gpu.version + 1)
    tables.gpus.put(new)
    tables.gpus.refresh(gpu.node_id)
    tables.nodes.bump(gpu.node_id)
    told = f"GPU {gpu.uuid} goes back to {back.value}"
    tables.journal.emit(Event("gpu.switching", gpu.id, told, None, gpu.node_id))
    return replace(operation, state=OperationState.FAILED, message="cancelled")


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
    for one in tables.sessions.of_node(node.id):
        session.over(tables, one, "the node was removed")
    for operation in tables.operations.running(node.id):
        tables.operations.end(operation.id, OperationState.FAILED, "the node was removed")
    for gpu in tables.gpus.of_node(node.id):
        for operation in tables.operations.running(gpu.id):
            tables.operations.end(operation.id, OperationState.FAILED, "the node was removed")
    tables.gpus.remove_node(node.id)
    tables.nodes.remove(node.id)
    tell(tables, node, "removed", f"node {node.name} was removed")


def tell(tables: Tables, node: Node, what: str, message: str) -> None:
    """An event of a node."""
    tables.journal.emit(Event(f"node.{what}", node.id, message, None, node.id, {"name": node.name}))
