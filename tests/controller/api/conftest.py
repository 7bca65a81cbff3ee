"""The whole of REST, from the door on, on a real database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from gpupool.controller.api.limiter import Limiter
from gpupool.controller.api.rest.app import make_app
from gpupool.controller.api.rest.context import Services
from gpupool.controller.api.rest.door import Door, Limits
from gpupool.controller.api.rest.metrics import Metrics
from gpupool.controller.api.rest.quick import Quick
from gpupool.controller.core.token import Role
from tests.controller.pool import FakeNode, Pool


@dataclass
class Rest:
    """A client for each role."""

    pool: Pool
    door: Door
    tenant_id: str
    node: FakeNode
    secrets: dict[str, str]
    client: TestClient

    def ask(
        self, who: str, method: str, path: str, body: Any = None, **headers: str
    ) -> httpx.Response:
        """One request; `who` is a role, `other` (another tenant) or nobody."""
        found = {name.replace("_", "-"): value for name, value in headers.items()}
        if who in self.secrets:
            found["Authorization"] = f"Bearer {self.secrets[who]}"
        answer: httpx.Response = self.client.request(
            method, path if path.startswith("/") else f"/api/v1/{path}", json=body, headers=found
        )
        return answer

    def make(self, name: str, who: str = "tenant", **more: Any) -> dict[str, Any]:
        """A vGPU."""
        body = {"name": name, "compute_percent": 10, "memory_mib": 100} | more
        answer = self.ask(who, "POST", "vgpus", body)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found


def make_door(pool: Pool, burst: int = 1_000_000, failures: int = 1_000_000) -> Door:
    """As main wires it."""
    metrics = Metrics(lambda: 0)
    services = Services(pool.store, lambda: pool.licence, "1.2.3", lambda: False)
    limits = Limits(Limiter(0.01, burst, time.monotonic), Limiter(0.01, failures, time.monotonic))
    return Door(
        Quick(make_app(services, metrics), services),
        pool.store,
        limits,
        metrics,
        now_ms=lambda: time.time_ns() // 1_000_000,
    )


@pytest.fixture
def rest(pool: Pool) -> Iterator[Rest]:
    """One node, two tenants, a token of each role."""
    tenant_id, other_id = pool.tenant("acme"), pool.tenant("umbrella")
    secrets = {
        "admin": pool.token(Role.ADMIN),
        "operator": pool.token(Role.OPERATOR),
        "tenant": pool.token(Role.TENANT, tenant_id),
        "other": pool.token(Role.TENANT, other_id),
        "node": pool.token(Role.NODE),
    }
    door = make_door(pool)
    node = pool.node("n1", gpus=2)
    with TestClient(door, raise_server_exceptions=False) as client:
        yield Rest(pool, door, tenant_id, node, secrets, client)
