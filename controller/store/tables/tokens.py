"""Tokens: the port `Tokens`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from gpupool.controller.core.ports import Page
from gpupool.controller.core.token import Role, Token
from gpupool.controller.store.models import TokenRow

_SELECT = select(
    TokenRow.id,
    TokenRow.name,
    TokenRow.role,
    TokenRow.tenant_id,
    TokenRow.node_name,
    TokenRow.created_ms,
    TokenRow.expires_ms,
)
_BY_DIGEST = _SELECT.where(TokenRow.digest == bindparam("digest"))


class SqlTokens:
    """See the port."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def by_digest(self, digest: str) -> Token | None:
        """See the port."""
        row = self._connection.execute(_BY_DIGEST, {"digest": digest}).first()
        return _token(row) if row else None

    def get(self, token_id: str) -> Token | None:
        """See the port."""
        row = self._connection.execute(_SELECT.where(TokenRow.id == token_id)).first()
        return _token(row) if row else None

    def page(self, page: Page) -> list[Token]:
        """See the port."""
        found = _SELECT.where(TokenRow.id > page.after).order_by(TokenRow.id).limit(page.limit)
        return [_token(row) for row in self._connection.execute(found)]

    def add(self, token: Token, digest: str) -> None:
        """See the port."""
        self._connection.execute(
            insert(TokenRow).values(
                id=token.id,
                digest=digest,
                name=token.name,
                role=token.role.value,
                tenant_id=token.tenant_id,
                node_name=token.node_name,
                created_ms=token.created_ms,
                expires_ms=token.expires_ms,
            )
        )

    def remove(self, token_id: str) -> None:
        """See the port."""
        self._connection.execute(delete(TokenRow).where(TokenRow.id == token_id))

    def remove_of(self, tenant_id: str) -> None:
        """See the port."""
        self._connection.execute(delete(TokenRow).where(TokenRow.tenant_id == tenant_id))

    def count(self) -> int:
        """See the port."""
        return int(
            self._connection.execute(select(func.count()).select_from(TokenRow)).scalar_one()
        )


def _token(row: Any) -> Token:
    return Token(
        id=row.id,
        name=row.name,
        role=Role(row.role),
        tenant_id=row.tenant_id,
        node_name=row.node_name,
        created_ms=row.created_ms,
        expires_ms=row.expires_ms,
    )
