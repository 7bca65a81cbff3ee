"""What hostd tells of a new picture, and to whom: a controller that knows differences gets them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio

from gpupool.hostd.adapters.controller_link import ControllerLink, LinkSettings, Node
from gpupool.hostd.core.differences import difference
from gpupool.hostd.core.link import (
    Desired,
    GpuState,
    Introduction,
    Picture,
    SessionFact,
    VgpuState,
)
from gpupool.wire.proto.node import node_api

_FIRST = Picture(
    3,
    (GpuState("g1"), GpuState("g2")),
    (VgpuState("v1", 10, 100), VgpuState("v2", 20, 100)),
    (SessionFact("1", "v1", "g1"), SessionFact("2", "", "g2")),
)


def test_nothing_new_is_nothing() -> None:
    told = difference(7, _FIRST, replace(_FIRST, applied_generation=4))
    assert (told.since, told.applied_generation) == (7, 4)
    assert (told.gpus, told.vgpus, told.vgpus_gone) == ((), (), ())
    assert (told.sessions, told.sessions_gone) == ((), ())


def test_what_changed_came_and_went() -> None:
    now = Picture(
        4,
        (GpuState("g1", local_memory_mib=5), GpuState("g2")),
        (VgpuState("v2", 30, 100), VgpuState("v3", 5, 5)),
        (SessionFact("2", "", "g2"), SessionFact("1", "v3", "g1")),
    )
    told = difference(1, _FIRST, now)
    assert told.gpus == (GpuState("g1", local_memory_mib=5),)
    assert told.vgpus == now.vgpus
    assert told.vgpus_gone == ("v1",)
    assert told.sessions == (SessionFact("1", "v3", "g1"),)
    assert told.sessions_gone == (SessionFact("1", "v1", "g1"),)


def test_what_is_not_as_it_should_be_is_spoken_of() -> None:
    """There or not, changed or not."""
    told = difference(1, _FIRST, replace(_FIRST, unsettled=frozenset({"v1", "never-there"})))
    assert told.vgpus == (VgpuState("v1", 10, 100),)
    assert told.vgpus_gone == ("never-there",)


@dataclass
class Controller:
    """As much of one as a link needs."""

    knows_differences: bool
    whole_next: bool = False
    calls: list[tuple[str, int, int]] = field(default_factory=list)  # call, sequence, since
    streams: asyncio.Queue[int] = field(default_factory=asyncio.Queue)

    async def serve(self) -> tuple[Any, int]:
        """The server and its port."""
        api = node_api()

        async def register(_request: Any, _context: Any) -> Any:
            return api.RegisterReply(node_id="node-1", incarnation=1, generation=1, beat_s=5)

        async def beat(_request: Any, _context: Any) -> Any:
            return api.BeatReply(known=True)

        async def report(request: Any, _context: Any) -> Any:
            self.calls.append(("Report", request.sequence, 0))
            return api.ReportReply(accepted=True, known=True)

        async def changes(request: Any, _context: Any) -> Any:
            self.calls.append(("ReportChanges", request.sequence, request.since))
            whole, self.whole_next = self.whole_next, False
            return api.ReportReply(accepted=not whole, known=True, whole=whole)

        async def watch(_request: Any, _context: Any) -> Any:
            while True:
                yield api.Desired(generation=await self.streams.get())

        works: dict[str, Any] = {"Register": register, "Beat": beat, "Report": report}
        if self.knows_differences:
            works["ReportChanges"] = changes
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                work,
                request_deserializer=api.calls[name].request.FromString,
                response_serializer=api.calls[name].reply.SerializeToString,
            )
            for name, work in works.items()
        }
        handlers["Watch"] = grpc.unary_stream_rpc_method_handler(
            watch,
            request_deserializer=api.calls["Watch"].request.FromString,
            response_serializer=api.calls["Watch"].reply.SerializeToString,
        )
        server = grpc.aio.server()
        handler = grpc.method_handlers_generic_handler(api.service, handlers)
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port


class Controlled:
    """What the link tells of: what it was told last."""

    known = True
    generation = 0
    not_done: dict[str, str] = {}  # noqa: RUF012  the link only reads it

    def begin(self) -> None: ...
    def resume(self) -> None: ...
    def run(self) -> None: ...

    def apply(self, desired: Desired) -> bool:
        """A newer one."""
        self.generation = desired.generation
        return True

    def picture(self) -> Picture:
        """Another one with each generation."""
        return replace(_FIRST, applied_generation=self.generation)


async def talk(controller: Controller, generations: int) -> list[tuple[str, int, int]]:
    """A link that hears of so many changes, one after the other; what it said of them."""
    server, port = await controller.serve()
    node = Node(lambda: Introduction("n1", "1", "", {}, (), "i"), lambda: (), lambda _desired: None)
    # The fake has all that the link asks of it.
    controlled: Any = Controlled()
    settings = LinkSettings((f"127.0.0.1:{port}",), tls=False)
    link = asyncio.create_task(ControllerLink(settings, node_api(), controlled, node).run())
    try:
        for generation in range(1, generations + 1):
            before = len(controller.calls)
            controller.streams.put_nowait(generation)
            for _ in range(400):
                if len(controller.calls) > before:
                    break
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.2)  # what follows at once
    finally:
        link.cancel()
        await asyncio.gather(link, return_exceptions=True)
        await server.stop(None)
    return controller.calls


def test_after_the_first_report_only_differences() -> None:
    calls = asyncio.run(talk(Controller(knows_differences=True), 3))
    assert calls == [("Report", 1, 0), ("ReportChanges", 2, 1), ("ReportChanges", 3, 2)]


def test_a_controller_that_asks_gets_a_whole_picture() -> None:
    calls = asyncio.run(talk(Controller(knows_differences=True, whole_next=True), 3))
    assert calls == [
        ("Report", 1, 0),
        ("ReportChanges", 2, 1),
        ("Report", 3, 0),
        ("ReportChanges", 4, 3),
    ]


def test_an_older_controller_gets_whole_pictures() -> None:
    calls = asyncio.run(talk(Controller(knows_differences=False), 3))
    assert [call for call, _, _ in calls] == ["Report"] * 3
