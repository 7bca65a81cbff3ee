"""Who may what: every route with every role, from one table; and the OpenAPI document."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.controller.api.conftest import Rest

GOLDEN = Path(__file__).parents[2] / "golden" / "controller" / "openapi.json"
ADMIN, STAFF, PEOPLE = {"admin"}, {"admin", "operator"}, {"admin", "operator", "tenant"}

# Every route; a new one has to be written down here, or the test fails.
ALLOWED: dict[tuple[str, str], set[str]] = {
    ("GET", "/api/v1/nodes"): STAFF,
    ("GET", "/api/v1/nodes/{node_id}"): STAFF,
    ("PATCH", "/api/v1/nodes/{node_id}"): STAFF,
    ("DELETE", "/api/v1/nodes/{node_id}"): STAFF,
    ("PUT", "/api/v1/nodes/{node_id}/drain"): STAFF,
    ("DELETE", "/api/v1/nodes/{node_id}/drain"): STAFF,
    ("GET", "/api/v1/gpus"): STAFF,
    ("GET", "/api/v1/gpus/{gpu_id}"): STAFF,
    ("PATCH", "/api/v1/gpus/{gpu_id}"): STAFF,
    ("POST", "/api/v1/vgpus"): PEOPLE,
    ("POST", "/api/v1/vgpus/group"): PEOPLE,
    ("GET", "/api/v1/vgpus"): PEOPLE,
    ("GET", "/api/v1/vgpus/{vgpu_id}"): PEOPLE,
    ("GET", "/api/v1/vgpus/{vgpu_id}/places"): PEOPLE,
    ("PATCH", "/api/v1/vgpus/{vgpu_id}"): PEOPLE,
    ("DELETE", "/api/v1/vgpus/{vgpu_id}"): PEOPLE,
    ("GET", "/api/v1/sessions"): PEOPLE,
    ("DELETE", "/api/v1/sessions/{session_id}"): PEOPLE,
    ("GET", "/api/v1/operations"): PEOPLE,
    ("GET", "/api/v1/operations/{operation_id}"): PEOPLE,
    ("DELETE", "/api/v1/operations/{operation_id}"): PEOPLE,
    ("GET", "/api/v1/events"): PEOPLE,
    ("GET", "/api/v1/audit"): ADMIN,
    ("POST", "/api/v1/tenants"): ADMIN,
    ("GET", "/api/v1/tenants"): PEOPLE,
    ("GET", "/api/v1/tenants/{tenant_id}"): PEOPLE,
    ("PATCH", "/api/v1/tenants/{tenant_id}"): ADMIN,
    ("DELETE", "/api/v1/tenants/{tenant_id}"): ADMIN,
    ("POST", "/api/v1/tokens"): ADMIN,
    ("GET", "/api/v1/tokens"): ADMIN,
    ("GET", "/api/v1/tokens/{token_id}"): ADMIN,
    ("DELETE", "/api/v1/tokens/{token_id}"): ADMIN,
    ("GET", "/api/v1/licence"): STAFF,
    ("GET", "/api/v1/version"): PEOPLE,
}

IDS = ("node_id", "gpu_id", "vgpu_id", "session_id", "operation_id", "tenant_id", "token_id")


def schema(rest: Rest) -> dict[str, Any]:
    """The OpenAPI document."""
    found: dict[str, Any] = rest.ask("nobody", "GET", "openapi.json").json()
    return found


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_route_with_every_role(rest: Rest) -> None:
    paths = schema(rest)["paths"]
    routes = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert routes == set(ALLOWED)
    for method, path in sorted(routes):
        filled = path
        for name in IDS:
            filled = filled.replace("{" + name + "}", "none-such")
        for role in ("nobody", "admin", "operator", "tenant", "node"):
            status = rest.ask(
                role, method, filled, {} if method in ("POST", "PATCH", "PUT") else None
            )
            told = f"{role} {method} {path}: {status.status_code}"
            if role == "nobody":
                assert status.status_code == 401, told
            elif role in ALLOWED[method, path]:
                assert status.status_code in (200, 404, 422), told
            else:
                assert status.status_code == 403, told


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_interface_does_not_change_unannounced(rest: Rest) -> None:
    """GPUPOOL_REGENERATE=1 writes it anew; the difference belongs into the changelog."""
    text = json.dumps(schema(rest), indent=1, sort_keys=True) + "\n"
    if os.environ.get("GPUPOOL_REGENERATE"):
        GOLDEN.parent.mkdir(parents=True, exist_ok=True)
        GOLDEN.write_text(text)
    assert GOLDEN.read_text() == text, "GPUPOOL_REGENERATE=1 pytest tests/controller/api writes it"


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic abc", "Bearer x", "Bearer " + "x" * 5000, "Bearer \x7f"],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_token_no_answer(rest: Rest, header: str) -> None:
    answer = rest.client.get("/api/v1/vgpus", headers={"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
