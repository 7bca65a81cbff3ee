"""Answers nodes. Every call: who calls, is it well formed, one transaction, an answer.

Refusals and a database that does not answer become gRPC's status codes; what happened is in the
details, which hostd logs. Nothing is kept here that another replica would need.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpc
import grpc.aio

from gpupool.controller.api.grpc import messages
from gpupool.controller.api.grpc.access import Access, Caller, address_of, names_of
from gpupool.controller.api.grpc.beats import Beats
from gpupool.controller.api.grpc.claiming import claim
from gpupool.controller.api.grpc.gathering import Gathering
from gpupool.controller.api.grpc.watchers import Watcher, Watchers
from gpupool.controller.core import claims, fleet, reporting
from gpupool.controller.core.errors import Kind, RefusedError, StoreError
from gpupool.controller.core.gpu import GpuUse
from gpupool.controller.core.licence import Licence
from gpupool.controller.core.node import Changes, Reported
from gpupool.controller.core.ports import Store, Tables
from gpupool.wire.proto.node import NodeApi

log = logging.getLogger("gpupool.controller.nodes")
T = TypeVar("T")

_THREADS = 8
# Reports and desired states are much and may wait a moment. Whoever allocates stands in one line
# with them for the database: no more than these may be before it.
_BULK_THREADS = 2
# So many nodes go together: their desired states, and the differences that they report.
_READ_TOGETHER = 64
_TOLD_TOGETHER = 16
_CHECK_AGAIN_S = 30.0
_USE_S = 15.0  # how busy GPUs are, of one node
_CODES = {
    Kind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Kind.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    Kind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Kind.IN_USE: grpc.StatusCode.ALREADY_EXISTS,
    Kind.TOO_MANY: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@dataclass(frozen=True, slots=True)
class Timing:
    """How often nodes beat: four times in a lease of 30 s."""

    beat_s: float = 7.5


class Servicer:
    """The service of one replica. Lives in one event loop; the database is asked in threads."""

    def __init__(
        self,
        store: Store,
        licence: Callable[[], Licence],
        api: NodeApi,
        access: Access,
        timing: Timing | None = None,
    ) -> None:
        self._store = store
        self._licence = licence
        self._api = api
        self._access = access
        self._timing = timing or Timing()
        self._replies = messages.Replies(api)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="nodes")
        self._bulk = ThreadPoolExecutor(_BULK_THREADS, thread_name_prefix="reports")
        self._beats = Beats(lambda beats: self._run(partial(store.beat, beats)))
        self.watchers = Watchers(
            lambda ids: self._run(lambda: store.read(lambda tables: tables.nodes.generations(ids)))
        )
        self._desires: Gathering[str, tuple[int, Any] | None] = Gathering(
            lambda ids: self._run(lambda: store.read(lambda tables: self._desired(tables, ids))),
            _READ_TOGETHER,
        )
        self._told: Gathering[Changes, Reported] = Gathering(
            lambda told: self._run_bulk(
                partial(store.change, lambda tables: reporting.changes_of(tables, told))
            ),
            _TOLD_TOGETHER,
        )
        # The last of each node that beats here, and when.
        self._uses: dict[str, tuple[tuple[GpuUse, ...], float]] = {}
        self._tenants: dict[str, str] = {}  # names by id: they never change
        self.stopping = False

    def close(self) -> None:
        """Lets go of the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._bulk.shutdown(wait=True, cancel_futures=True)

    def handlers(self) -> grpc.GenericRpcHandler:
        """For the server."""
        unary = {
            "Register": self._register,
            "Beat": self._beat,
            "Report": self._report,
            "ReportChanges": self._changes,
            "Claim": self._claim,
            "Release": self._release,
        }
        found = {}
        for name, work in unary.items():
            call = self._api.calls[name]
            found[name] = grpc.unary_unary_rpc_method_handler(
                self._answering(work),
                request_deserializer=call.request.FromString,
                response_serializer=call.reply.SerializeToString,
            )
        watch = self._api.calls["Watch"]
        found["Watch"] = grpc.unary_stream_rpc_method_handler(
            self._watch,
            request_deserializer=watch.request.FromString,
            response_serializer=watch.reply.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(self._api.service, found)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _run_bulk(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._bulk, work)

    async def _change(self, work: Callable[[Tables], T]) -> T:
        return await self._run(partial(self._store.change, work))

    def _answering(
        self, work: Callable[[Any, Caller], Awaitable[Any]]
    ) -> Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]:
        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await work(request, await self._who(context))
            except (RefusedError, StoreError) as error:
                await _abort(context, error)

        return answer

    async def _who(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        sent = dict(context.invocation_metadata() or ())
        authorization = str(sent.get("authorization", ""))
        names = names_of(context.auth_context())
        known = self._access.known(authorization, names)
        if known is not None:
            return known
        address = address_of(context.peer())
        return await self._run(partial(self._access.who, authorization, names, address))

    async def _node_of(self, request: Any, caller: Caller) -> tuple[str, int]:
        node_id, incarnation = messages.node_of(request)
        if not self._access.checked(caller, node_id):
            await self._run(partial(self._access.check_node, caller, node_id))
        return node_id, incarnation

    async def _register(self, request: Any, caller: Caller) -> Any:
        told = messages.registration(request)
        self._access.check_name(caller, told.name)
        licence = self._licence()
        done = await self._change(lambda tables: fleet.register(tables, told, licence))
        log.info(
            "node %s (%s, %d GPUs) registered: incarnation %d of %s",
            told.name,
            told.agent_version,
            len(told.gpus),
            done.incarnation,
            done.node_id,
        )
        return self._replies.registered(done, self._timing.beat_s)

    async def _beat(self, request: Any, caller: Caller) -> Any:
        node_id, incarnation = await self._node_of(request, caller)
        uses = messages.uses(request)
        known = await self._beats.beat(node_id, incarnation)
        if known and uses:
            await self._use(node_id, uses)
        return self._replies.beaten(known=known)

    async def _use(self, node_id: str, uses: tuple[GpuUse, ...]) -> None:
        """Each is a transaction of its own, so not with every beat."""
        now_s = time.monotonic()
        before, written_s = self._uses.get(node_id, ((), -_USE_S))
        if before != uses and now_s - written_s >= _USE_S:
            self._uses[node_id] = (uses, now_s)
            await self._run_bulk(partial(self._store.use, node_id, uses))

    async def _report(self, request: Any, caller: Caller) -> Any:
        await self._node_of(request, caller)
        told = messages.report(request)
        done = await self._run_bulk(
            partial(self._store.change, lambda tables: reporting.report(tables, told))
        )
        return self._replies.reported(done)

    async def _changes(self, request: Any, caller: Caller) -> Any:
        await self._node_of(request, caller)
        told = messages.changes(request)
        return self._replies.reported(await self._told.ask(told.node_id, told))

    async def _claim(self, request: Any, caller: Caller) -> Any:
        await self._node_of(request, caller)
        licence = self._licence()
        try:
            return await self._change(lambda tables: claim(tables, request, licence, self._replies))
        except RefusedError as error:
            # No room, or in use elsewhere: that may pass. Its text is for whoever runs the client.
            wait = error.kind in (Kind.NO_ROOM, Kind.QUOTA, Kind.IN_USE)
            return self._replies.not_granted(error.detail, wait=wait)

    async def _release(self, request: Any, caller: Caller) -> Any:
        node_id, incarnation = await self._node_of(request, caller)
        claim_id = messages.claim_id(request)

        def work(tables: Tables) -> None:
            node = tables.nodes.get(node_id)
            if node is not None and node.incarnation == incarnation:
                claims.release(tables, node_id, claim_id)

        await self._change(work)
        return self._replies.released()

    async def _watch(
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        try:
            caller = await self._who(context)
            node_id, incarnation = await self._node_of(request, caller)
            with self.watchers.join(node_id) as watcher:
                while not self.stopping:
                    message = await self._next(watcher, incarnation, context)
                    if message is not None:
                        yield message
        except (RefusedError, StoreError) as error:
            await _abort(context, error)

    async def _next(
        self, watcher: Watcher, incarnation: int, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Any:
        """The next message of a stream; None: nothing new for a while."""
        if watcher.sent >= 0 and not await watcher.wait(_CHECK_AGAIN_S):
            await self._who(context)  # a token that was revoked
            return None
        if self.stopping:
            return None
        found = await self._desires.ask(watcher.node_id, watcher.node_id)
        if found is None or found[0] != incarnation:
            return await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, "this incarnation is not known: register again"
            )
        message = found[1]
        if message.generation == watcher.sent:
            return None
        watcher.sent = message.generation
        return message

    def _desired(self, tables: Tables, node_ids: Collection[str]) -> list[tuple[int, Any] | None]:
        """Incarnation and message of each; None: there is no such node."""
        found = fleet.desired_of(tables, node_ids)
        tenants = {one.tenant_id for _, wanted in found.values() for one in wanted.vgpus}
        for tenant_id in tenants - self._tenants.keys():
            tenant = tables.tenants.get(tenant_id)
            if tenant is not None:
                self._tenants[tenant_id] = tenant.name
        told: list[tuple[int, Any] | None] = []
        for node_id in node_ids:
            one = found.get(node_id)
            told.append(one and (one[0], self._replies.desired(one[1], self._tenants)))
        return told


async def _abort(
    context: grpc.aio.ServicerContext[Any, Any], error: RefusedError | StoreError
) -> None:
    if isinstance(error, StoreError):
        log.warning("a node is not answered: %s", error)
        await context.abort(grpc.StatusCode.UNAVAILABLE, f"the database does not answer: {error}")
        return
    await context.abort(_CODES.get(error.kind, grpc.StatusCode.FAILED_PRECONDITION), error.detail)
