"""Clients that want a vGPU of the controller's: whether it is here, and the claim for one that is
on demand.

A reserved one that this node was told of needs no question, so it works while the controller is
away. One on demand is asked for every time; a client that would wait is told what for.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gpupool.hostd.api.room_waiters import MOMENT_S, has_left, tell
from gpupool.hostd.core.admission import Door, Refusal, names_of
from gpupool.hostd.core.controlled import Controlled, Found, Missing, Mistaken
from gpupool.hostd.core.link import Claim, ClaimAnswer, ClaimOutcome, LinkError
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.log import fields
from gpupool.wire.hello import Hello, WelcomeStatus

log = logging.getLogger("gpupool.hostd")

_AGAIN_S = 1.0
_LOOK_S = 0.25  # whether the client is still there

# Asks the controller; the second argument takes the answer before anything else is told to it.
# Raises LinkError.
AskController = Callable[[Claim, Callable[[ClaimAnswer], None]], Awaitable[ClaimAnswer]]


@dataclass(frozen=True, slots=True)
class Settled:
    """The client may go on, to the vGPU of that local name (several: with commas between)."""

    vgpu: str
    claim_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _NotYet:
    text: str


class VgpuClaims:
    """Those of one host."""

    def __init__(
        self,
        controlled: Controlled,
        ask: AskController,
        changed: Callable[[], None],
        queue_s: int,
        host_version: str,
    ) -> None:
        self._controlled = controlled
        self._ask = ask
        self._changed = changed
        self._queue_s = queue_s
        self._host_version = host_version

    def concern(self, hello: Hello) -> bool:
        """Whether a client may mean a vGPU of the controller's."""
        named = bool(hello.vgpu) and not hello.vgpu.startswith("~")
        return named and not all(map(self._controlled.is_local, names_of(hello.vgpu)))

    async def settle(
        self, connection: socket.socket, hello: Hello, door: Door
    ) -> Settled | Refusal | None:
        """Which vGPU the client gets, perhaps after a while. None: it has left.

        `closed` has to follow.
        """
        now = asyncio.get_running_loop().time
        wait_s = min(hello.wait_s, self._queue_s)
        ends_s = now() + max(wait_s, MOMENT_S)
        told = ""
        while True:
            answer = await self._try(hello, door)
            if not isinstance(answer, _NotYet):
                return answer
            connection.setblocking(False)
            if now() >= ends_s:
                after = f"not within {wait_s} s: " if wait_s else ""
                return Refusal(WelcomeStatus.LIMIT, _fit(after + answer.text))
            text = _fit(f"waiting for vGPU {hello.vgpu}, for up to {wait_s} s: {answer.text}")
            if wait_s and text != told:
                await tell(connection, text, self._host_version)
                told = text
            again_s = now() + min(_AGAIN_S, max(0.0, ends_s - now()))
            while now() < again_s:
                await asyncio.sleep(_LOOK_S)
                if has_left(connection):
                    return None

    def closed(self, settled: Settled) -> None:
        """The client has a session now, or none: the controller is told."""
        for claim_id in settled.claim_ids:
            self._controlled.closed(claim_id)
        if settled.claim_ids:
            self._changed()

    async def _try(self, hello: Hello, door: Door) -> Settled | Refusal | _NotYet:
        """All that it names, or none: two clients must not wait for what the other one holds."""
        names: list[str] = []
        claims: tuple[str, ...] = ()
        for name in names_of(hello.vgpu):
            answer = await self._try_one(name, hello, door)
            if not isinstance(answer, Settled):
                self.closed(Settled("", claims))
                return answer
            names.append(answer.vgpu)
            claims += answer.claim_ids
        return Settled(",".join(names), claims)

    async def _try_one(self, name: str, hello: Hello, door: Door) -> Settled | Refusal | _NotYet:
        if self._controlled.is_local(name):
            return Settled(name)
        found = self._controlled.look_up(name, door.tenant)
        if isinstance(found, Found):
            return Settled(found.name)
        if isinstance(found, Mistaken):
            return Refusal(WelcomeStatus.LIMIT, _fit(found.text))
        if isinstance(found, Missing):
            return _NotYet(found.text)
        return await self._claim(name, hello, door)

    async def _claim(self, name: str, hello: Hello, door: Door) -> Settled | Refusal | _NotYet:
        # A session has one vGPU on a GPU. Those that were granted just now are among them.
        others = [one for one in names_of(hello.vgpu) if one != name]
        taken = self._controlled.gpus_of(others, door.tenant)
        claim = Claim(f"claim-{secrets.token_hex(8)}", name, door.tenant, hello.program, taken)
        granted: list[Found | Missing] = []

        def settle(answer: ClaimAnswer) -> None:
            if answer.outcome is ClaimOutcome.GRANTED:
                granted.append(self._controlled.granted(claim, answer))

        try:
            answer = await self._ask(claim, settle)
        except LinkError as error:
            return _NotYet(str(error))
        except PortError as error:
            log.error("vGPU of the controller not kept", extra=fields({"error": str(error)}))
            self._drop(claim)
            return _NotYet(str(error))
        if answer.outcome is ClaimOutcome.REFUSED:
            return Refusal(WelcomeStatus.LIMIT, _fit(answer.text))
        if not granted:
            return _NotYet(answer.text)
        if isinstance(granted[0], Found):
            return Settled(granted[0].name, (claim.id,))
        self._drop(claim)
        return _NotYet(granted[0].text)

    def _drop(self, claim: Claim) -> None:
        self._controlled.closed(claim.id)
        self._changed()


def _fit(text: str) -> str:
    """A Welcome has room for 255 bytes."""
    raw = text.encode()
    return text if len(raw) <= 255 else raw[:252].decode(errors="ignore") + "..."
