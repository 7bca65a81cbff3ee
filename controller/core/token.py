"""Tokens: who may ask for what.

A token is 256 random bits, shown once. Kept is its SHA-256: a plain fast hash is enough, and a slow
one (bcrypt, Argon2) would only cost time at every request. Slow hashes make guessing dear where a
secret comes from a person's head; nobody guesses 256 random bits, at any speed.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from enum import Enum

PREFIX = "gpupool_"  # lets scanners for leaked secrets find it
_BYTES = 32


class Role(str, Enum):
    """What a token may do."""

    ADMIN = "admin"  # everything
    OPERATOR = "operator"  # nodes, GPUs, every tenant's vGPUs; no tenants, tokens, licence
    TENANT = "tenant"  # its own vGPUs
    NODE = "node"  # one hostd: the gRPC side only


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept: without the secret."""

    id: str
    name: str
    role: Role
    tenant_id: str | None = None
    node_name: str | None = None
    created_ms: int = 0
    expires_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks. `token_id` goes into the audit log, the secret nowhere."""

    token_id: str
    role: Role
    tenant_id: str | None = None
    node_name: str | None = None
    request_id: str = ""


def new_secret() -> str:
    """A new token's text."""
    return PREFIX + secrets.token_urlsafe(_BYTES)


def digest(secret: str) -> str:
    """What is kept of a token, and what it is found by.

    The lookup compares digests, so its time tells nothing of use about a secret.
    """
    return hashlib.sha256(secret.encode()).hexdigest()
