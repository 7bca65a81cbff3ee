"""`gpupool token`: who may ask a controller."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated

import typer

from gpupool.cli import layout
from gpupool.cli.asking import EXITS, Asking, names, verb
from gpupool.cli.backend import BackendError, UsageError

DESCRIPTION = """\
Tokens say who asks a controller. A role decides what a token may do:

  admin      everything
  operator   nodes, GPUs and every tenant's vGPUs; no tenants, tokens or licence
  tenant     vGPUs of one tenant
  node       one hostd; nothing else

Tokens are kept in files that only their owner may read, never in variables or arguments.
"""
APP = layout.group("token", DESCRIPTION, EXITS)

_known = names(lambda asking: [one.name for one in asking.central.tokens()])


class Role(str, enum.Enum):
    """What a token may do."""

    ADMIN = "admin"
    OPERATOR = "operator"
    TENANT = "tenant"
    NODE = "node"


@verb(
    APP,
    "create",
    "make one, into a file",
    """\
Makes a token and writes it into a new file of mode 0600. Nobody can read it out of the controller
again.
""",
    """\
examples:
  gpupool token create alice --role operator --out ~/.config/gpupool/token
  gpupool token create ci --role tenant --tenant research --days 30 --out ci.token
  gpupool token create gpu7 --role node --node gpu7 --out gpu7.token
""",
)
def create(
    asking: Asking,
    name: Annotated[str, typer.Argument(metavar="NAME", help="what the token is called")],
    role: Annotated[Role, typer.Option(metavar="ROLE", help="admin, operator, tenant or node")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="where it is written; a new file")],
    tenant: Annotated[str, typer.Option(metavar="TENANT", help="whose; with --role tenant")] = "",
    node: Annotated[str, typer.Option(metavar="NODE", help="which; with --role node")] = "",
    days: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="until it ends; default: never")
    ] = None,
) -> int:
    """Makes it."""
    if bool(tenant) != (role is Role.TENANT) or bool(node) != (role is Role.NODE):
        raise UsageError(
            "--role tenant needs --tenant, --role node needs --node, others take neither"
        )
    try:  # before the controller is asked: a token that cannot be written would be lost
        file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BackendError(f"--out {out}: {error.strerror}; name a new file") from error
    try:
        made = asking.central.create_token(name, role.value, tenant or node, days)
    except BaseException:
        os.close(file)
        out.unlink(missing_ok=True)
        raise
    try:
        with os.fdopen(file, "w", encoding="ascii") as opened:
            opened.write(made.secret + "\n")
    except OSError as error:
        raise BackendError(
            f"--out {out}: {error.strerror}; token {made.token.id} is lost, revoke it"
        ) from error
    if asking.as_json:
        asking.answer(token=made.token, file=str(out))
    else:
        asking.done(f"made token {name} ({role.value}); it is in {out}")
    return 0


@verb(
    APP,
    "list",
    "show all of them",
    "Shows the tokens, without their secrets.",
    "example:    gpupool token list --json | jq -r '.tokens[].name'",
)
def list_all(asking: Asking) -> int:
    """Shows them."""
    found = asking.central.tokens()
    if asking.as_json:
        asking.answer(tokens=found)
        return 0
    rows = [
        [
            one.name,
            one.id,
            one.role,
            one.tenant or one.node or "-",
            one.created,
            one.expires or "never",
        ]
        for one in found
    ]
    header = ("NAME", "TOKEN", "ROLE", "OF", "CREATED", "EXPIRES")
    asking.show(header, rows, "no tokens")
    return 0


@verb(
    APP,
    "revoke",
    "revoke some of them",
    "Revokes tokens: from then on nobody can ask with them.",
    "example:    gpupool token revoke alice",
)
def revoke(
    asking: Asking,
    token: Annotated[
        list[str], typer.Argument(metavar="TOKEN", autocompletion=_known, help="name or id")
    ],
) -> int:
    """Revokes them, one after the other."""
    for each in token:
        asking.central.revoke_token(each)
        if not asking.as_json:
            asking.done(f"revoked token {each}")
    if asking.as_json:
        asking.answer(revoked=list(token))
    return 0
