"""Emptying a node: none -> draining -> drained, and back. One change a function (see ports).

While it drains nothing is placed there, and the node lets in no client, not of its own vGPUs
either. It is drained when the node has put that into effect and reports no session. On-demand vGPUs
get room elsewhere with their next client; reserved ones stay, and cannot be used meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gpupool.controller.core import session
from gpupool.controller.core.errors import Kind, RefusedError
from gpupool.controller.core.event import Event
from gpupool.controller.core.identity import new_id
from gpupool.controller.core.node import Drain, Node, NodeState
from gpupool.controller.core.operation import Operation, OperationState
from gpupool.controller.core.ports import Tables

KIND = "node.drain"


def begin(tables: Tables, node: Node, deadline_s: int | None) -> Operation:
    """Empties it; said again, with another deadline. Raises RefusedError where it is lost."""
    if node.state is NodeState.LOST:
        raise RefusedError(
            Kind.IN_USE,
            f"Node {node.name!r} is silent: nobody knows what runs there. Nothing is placed there "
            "until it is back.",
        )
    running = [one for one in tables.operations.running(node.id) if one.kind == KIND]
    until_ms = None if deadline_s is None else tables.now_ms + 1000 * deadline_s
    _put(tables, node, Drain.DRAINING, deadline_s, until_ms)
    _tell(tables, node, "draining", "is being drained")
    if running:
        return running[0]
    operation = Operation(
        id=new_id("operation", tables.now_ms),
        kind=KIND,
        subject=node.id,
        message=f"waits for the sessions of node {node.name}",
        created_ms=tables.now_ms,
        updated_ms=tables.now_ms,
    )
    tables.operations.add(operation)
    return operation


def stop(tables: Tables, node: Node) -> Node:
    """Lets clients and vGPUs come again. Sessions that are being ended are ended."""
    if node.drain is Drain.NONE:
        return node
    changed = _put(tables, node, Drain.NONE)
    for operation in tables.operations.running(node.id):
        if operation.kind == KIND:
            tables.operations.end(operation.id, OperationState.FAILED, "the node was undrained")
    _tell(tables, node, "undrained", "takes clients again")
    return tables.nodes.get(node.id) or changed  # with its generation


def _put(
    tables: Tables,
    node: Node,
    drain: Drain,
    deadline_s: int | None = None,
    until_ms: int | None = None,
) -> Node:
    """The node so, for the scheduler and for the node itself."""
    changed = replace(
        node,
        cordoned=drain is not Drain.NONE,
        drain=drain,
        drain_deadline_s=deadline_s,
        drain_until_ms=until_ms,
        version=node.version + 1,
    )
    tables.nodes.put(changed)
    tables.gpus.refresh(node.id)
    tables.nodes.bump(node.id)
    return changed


def settle(tables: Tables, node_id: str) -> None:
    """After a report: whether it is empty now."""
    node = tables.nodes.get(node_id)
    if node is None or node.drain is not Drain.DRAINING:
        return
    if node.applied_generation < node.generation or tables.sessions.of_node(node_id):
        return
    tables.nodes.put(replace(node, drain=Drain.DRAINED, version=node.version + 1))
    for operation in tables.operations.running(node_id):
        if operation.kind == KIND:
            tables.operations.end(operation.id, OperationState.DONE, "")
    _tell(tables, node, "drained", "is empty")


def end_sessions(tables: Tables, node_id: str, until_ms: int) -> int:
    """Its deadline has passed, if it is still that one; so many sessions are being ended."""
    node = tables.nodes.get(node_id)
    if node is None or node.drain is not Drain.DRAINING or node.drain_until_ms != until_ms:
        return 0
    rows = [one for one in tables.sessions.of_node(node_id) if not one.ending]
    session.mark(tables, rows)
    return len({one.id for one in rows})


class Deadlines:
    """When sessions of draining nodes are to be ended, as one replica sees it.

    The date in the database is read once; from then on the replica's monotonic clock counts. So a
    wall clock that jumps ends nothing early, and a replica that starts goes on where another was.
    """

    def __init__(self) -> None:
        self._due_s: dict[tuple[str, int], float] = {}

    def look(
        self, draining: Iterable[Node], now_ms: int, monotonic_s: float
    ) -> list[tuple[str, int]]:
        """Takes all nodes that drain; those whose deadline has passed, with its date."""
        due: dict[tuple[str, int], float] = {}
        for node in draining:
            if node.drain_until_ms is None:
                continue
            key = (node.id, node.drain_until_ms)
            left_s = min((node.drain_until_ms - now_ms) / 1000, node.drain_deadline_s or 0)
            due[key] = self._due_s.get(key, monotonic_s + left_s)
        self._due_s = due
        return [key for key, at_s in due.items() if at_s <= monotonic_s]


def _tell(tables: Tables, node: Node, what: str, text: str) -> None:
    message = f"node {node.name} {text}"
    tables.journal.emit(Event(f"node.{what}", node.id, message, None, node.id, {"name": node.name}))
