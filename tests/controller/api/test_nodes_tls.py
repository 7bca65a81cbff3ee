"""Nodes over TLS: with a token, and with a certificate in its place."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gpupool.bench.simulated_node import SimulatedNode, cards, channel
from gpupool.controller.api.grpc.server import NodeDoor
from gpupool.wire.proto.node import node_api
from tests.controller.api.served import node_token, replica
from tests.controller.api.test_nodes import run
from tests.controller.pool import Pool


@dataclass(frozen=True)
class Pair:
    """A certificate that signs itself, and its key."""

    certificate: Path
    key: Path


def pair(folder: Path, name: str) -> Pair:
    """For 127.0.0.1, with that common name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    found = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    found.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    found.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return found


async def register(
    target: str, ca: Pair, name: str, token: str = "", own: Pair | None = None
) -> grpc.StatusCode:
    """What becomes of a registration."""
    connection = channel(
        target,
        ca.certificate.read_bytes(),
        own.key.read_bytes() if own else None,
        own.certificate.read_bytes() if own else None,
    )
    one = SimulatedNode(node_api(), name, cards(name, 1), token)
    one._channel = connection
    try:
        await asyncio.wait_for(one.register(), 10)
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        await connection.close()
    return grpc.StatusCode.OK


@pytest.fixture
def server(tmp_path: Path) -> Pair:
    return pair(tmp_path, "controller")


def test_a_token_over_tls(pool: Pool, server: Pair, tmp_path: Path) -> None:
    door = NodeDoor("127.0.0.1:0", server.certificate, server.key)
    other = pair(tmp_path, "somebody")

    async def work() -> None:
        with replica(pool, door) as target:
            token = node_token(pool, "n1")
            codes = grpc.StatusCode
            assert await register(target, server, "n1", token) is codes.OK
            assert await register(target, server, "n1") is codes.UNAUTHENTICATED
            assert await register(target, other, "n1", token) is codes.UNAVAILABLE

    run(work())


def test_a_certificate_in_place_of_a_token(pool: Pool, server: Pair, tmp_path: Path) -> None:
    mine, foreign = pair(tmp_path, "n1"), pair(tmp_path, "n2")
    door = NodeDoor("127.0.0.1:0", server.certificate, server.key, client_ca=mine.certificate)

    async def work() -> None:
        with replica(pool, door) as target:
            codes = grpc.StatusCode
            assert await register(target, server, "n1", own=mine) is codes.OK
            assert await register(target, server, "n2", own=mine) is codes.PERMISSION_DENIED
            assert await register(target, server, "n2", own=foreign) is codes.UNAVAILABLE
            token = node_token(pool, "n1")
            assert await register(target, server, "n1", token) is codes.UNAVAILABLE

    run(work())
