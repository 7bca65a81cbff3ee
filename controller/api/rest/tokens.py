"""/tokens: shown once, kept as a hash."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gpupool.controller.api.rest.context import (
    ADMIN,
    ChangeCall,
    PageOf,
    PageQuery,
    ReadCall,
    allow,
    answer,
    listed,
    shown,
)
from gpupool.controller.api.rest.given import TokenIn
from gpupool.controller.api.rest.models import NewTokenOut, TokenOut
from gpupool.controller.api.rest.problems import described
from gpupool.controller.core.errors import Kind, RefusedError, not_found
from gpupool.controller.core.identity import new_id
from gpupool.controller.core.ports import Answer, Tables
from gpupool.controller.core.token import Role, Token, digest, new_secret

router = APIRouter(prefix="/tokens", tags=["tokens"], dependencies=[allow(*ADMIN)])


@router.post("", status_code=201, response_model=NewTokenOut, responses=described(Kind.NOT_FOUND))
def create_token(call: ChangeCall, body: TokenIn) -> Response:
    """Makes a token. The answer is the only place where its secret is ever shown."""
    call.no_key()
    if (body.role is Role.TENANT) != (body.tenant is not None):
        raise RefusedError(
            Kind.INVALID, "tenant: needed for the role tenant, and for no other one."
        )
    if (body.role is Role.NODE) != (body.node is not None):
        raise RefusedError(Kind.INVALID, "node: needed for the role node, and for no other one.")
    secret = new_secret()

    def work(tables: Tables) -> Answer:
        tenant_id = None
        if body.tenant is not None:
            tenant = tables.tenants.get(body.tenant) or tables.tenants.by_name(body.tenant)
            if tenant is None:
                raise not_found("tenant", body.tenant)
            tenant_id = tenant.id
        now_ms = tables.now_ms
        token = Token(
            id=new_id("token", now_ms),
            name=body.name,
            role=body.role,
            tenant_id=tenant_id,
            node_name=body.node,
            created_ms=now_ms,
            expires_ms=None if body.expires_in_s is None else now_ms + body.expires_in_s * 1000,
        )
        tables.tokens.add(token, digest(secret))
        call.audit(tables, "token.create", token.id, None, token, tenant_id)
        shape = NewTokenOut(**TokenOut.of(token).model_dump(), secret=secret)
        return answer(shape, 201, Location=f"/api/v1/tokens/{token.id}")

    return call.change(work)


@router.get("", response_model=PageOf[TokenOut], responses=described())
def list_tokens(call: ReadCall, page: PageQuery) -> Response:
    """All tokens, without their secrets."""
    found = call.read(lambda tables: tables.tokens.page(page))
    return listed([TokenOut.of(each) for each in found], page, found[-1].id if found else "")


@router.get("/{token_id}", response_model=TokenOut, responses=described(Kind.NOT_FOUND))
def get_token(call: ReadCall, token_id: str) -> Response:
    """One token."""

    def work(tables: Tables) -> Token:
        token = tables.tokens.get(token_id)
        if token is None:
            raise not_found("token", token_id)
        return token

    return shown(TokenOut.of(call.read(work)))


@router.delete(
    "/{token_id}",
    status_code=204,
    response_class=Response,
    responses=described(Kind.NOT_FOUND, Kind.IN_USE),
)
def delete_token(call: ChangeCall, token_id: str) -> Response:
    """Revokes it, within a second on every replica. Not the one that asks: one must be left."""

    def work(tables: Tables) -> Answer:
        token = tables.tokens.get(token_id)
        if token is None:
            raise not_found("token", token_id)
        if token_id == call.actor.token_id:
            raise RefusedError(Kind.IN_USE, "This token is the one that asks. Use another one.")
        tables.tokens.remove(token_id)
        call.audit(tables, "token.delete", token_id, token, None, token.tenant_id)
        return Answer(204, None, {})

    return call.change(work)
