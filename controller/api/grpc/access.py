"""Which node calls: by its token, or by the certificate that its TLS connection was made with.

A node speaks for itself only: its token or certificate names it, and every call is held against
that. A token that was revoked works for another `_KEEP_S` at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gpupool.controller.api.limiter import Limiter
from gpupool.controller.core.errors import Kind, RefusedError
from gpupool.controller.core.ports import Store, Tables
from gpupool.controller.core.token import Role, Token, digest

_KEEP_S = 10.0
_MOST_KEPT = 16384
_MOST_TOKEN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. node_name None: a token for any node."""

    node_name: str | None
    token_id: str


class Access:
    """What one replica knows of callers. Used from several threads: entries are only replaced."""

    def __init__(
        self, store: Store, now_ms: Callable[[], int], failures: Limiter | None = None
    ) -> None:
        self._store = store
        self._now_ms = now_ms
        self._failures = failures  # by address: tokens that are not known
        self._mutex = threading.Lock()  # for it
        self._callers: dict[str, tuple[Caller, float]] = {}
        self._names: dict[str, str] = {}  # of nodes, by id: these never change

    def known(self, authorization: str, names: Sequence[str]) -> Caller | None:
        """Who that is, without the database; None: ask `who`."""
        if names:
            return Caller(names[0], f"certificate {names[0]}")
        kept = self._callers.get(_key(authorization))
        if kept is None or kept[1] < time.monotonic():
            return None
        return kept[0]

    def who(self, authorization: str, names: Sequence[str], address: str = "") -> Caller:
        """Who that is. Raises RefusedError and StoreError."""
        found = self.known(authorization, names)
        if found is not None:
            return found
        # Nodes behind one address: whoever was let in before still is.
        if _key(authorization) not in self._callers and self._too_often(address):
            raise RefusedError(
                Kind.TOO_MANY, "Too many calls without a valid token from this address."
            )
        try:
            return self._look_up(authorization)
        except RefusedError:
            self._callers.pop(_key(authorization), None)
            if self._failures is not None:
                with self._mutex:
                    self._failures.take(address)
            raise

    def _too_often(self, address: str) -> bool:
        if self._failures is None:
            return False
        with self._mutex:
            return self._failures.empty(address)

    def _look_up(self, authorization: str) -> Caller:
        secret = _secret(authorization)
        token: Token | None = None
        if secret:
            token = self._store.read(lambda tables: tables.tokens.by_digest(digest(secret)))
        expired = (
            token is not None
            and token.expires_ms is not None
            and token.expires_ms <= self._now_ms()
        )
        if token is None or expired:
            raise RefusedError(
                Kind.UNAUTHENTICATED,
                "A node needs a token of the role node (`gpupool token create`) in the file that "
                "controller.token_file names, or a certificate.",
            )
        if token.role is not Role.NODE:
            raise RefusedError(
                Kind.FORBIDDEN, f"This token has the role {token.role.value}, not node."
            )
        if len(self._callers) >= _MOST_KEPT:
            self._callers = {}
        caller = Caller(token.node_name, token.id)
        self._callers[_key(authorization)] = (caller, time.monotonic() + _KEEP_S)
        return caller

    def check_name(self, caller: Caller, name: str) -> None:
        """Raises RefusedError where it speaks for another node."""
        if caller.node_name not in (None, name):
            raise RefusedError(
                Kind.FORBIDDEN, f"This token or certificate is for node {caller.node_name!r}."
            )

    def checked(self, caller: Caller, node_id: str) -> bool:
        """Whether it is known, without the database, that it may speak for that node."""
        return caller.node_name is None or caller.node_name == self._names.get(node_id)

    def check_node(self, caller: Caller, node_id: str) -> None:
        """The same, by the node's id. Raises StoreError, too."""
        if caller.node_name is None:
            return
        name = self._names.get(node_id)
        if name is None:

            def look(tables: Tables) -> str | None:
                node = tables.nodes.get(node_id)
                return node.name if node else None

            name = self._store.read(look)
            if name is None:
                return  # nobody's: the answer will be that it is not known
            self._names[node_id] = name
        self.check_name(caller, name)


def address_of(peer: str) -> str:
    """Without the port: gRPC says "ipv4:192.0.2.1:50000" and "ipv6:%5B::1%5D:50000"."""
    return peer.rpartition(":")[0]


def names_of(auth_context: Mapping[str, Sequence[bytes]]) -> list[str]:
    """What the caller's certificate, which the server has checked, calls it: its common name."""
    return [name.decode(errors="replace") for name in auth_context.get("x509_common_name", ())]


def _secret(authorization: str) -> str:
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or len(secret) > _MOST_TOKEN_CHARACTERS:
        return ""
    return secret.strip()


def _key(authorization: str) -> str:
    return digest(_secret(authorization))
