"""REST as a client sees it."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from gpupool.controller.core.errors import StoreError
from gpupool.controller.core.licence import Licence
from gpupool.controller.core.node import SessionReport
from gpupool.controller.core.token import Role, digest
from tests.controller.api.conftest import Rest, make_door


def problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """A refusal of this kind, in the form of RFC 9457."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["type"] == f"urn:gpupool:problem:{kind}"
    assert found["status"] == status
    assert found["request_id"] == answer.headers["x-request-id"]
    assert {"title", "detail"} <= set(found)
    return found


def test_the_life_of_a_vgpu(rest: Rest) -> None:
    made = rest.ask("tenant", "POST", "vgpus", {"name": "a", "compute_percent": 40})
    assert made.status_code == 201
    assert made.headers["etag"] == '"1"'
    path = made.headers["location"]
    vgpu = rest.ask("tenant", "GET", path).json()
    assert vgpu == made.json()
    assert (vgpu["state"], vgpu["node"], vgpu["endpoint"]) == ("placed", "n1", "tls://n1:9179")
    rest.node.report()
    assert rest.ask("tenant", "GET", path).json()["state"] == "ready"
    changed = rest.ask("tenant", "PATCH", path, {"compute_percent": 60, "policy": "hard"})
    assert (changed.json()["compute_percent"], changed.json()["policy"]) == (60, "hard")
    deleted = rest.ask("tenant", "DELETE", path)
    assert deleted.status_code == 202
    operation = deleted.headers["location"]
    assert rest.ask("tenant", "GET", operation).json()["state"] == "running"
    rest.node.report()
    assert rest.ask("tenant", "GET", operation).json()["state"] == "done"
    problem(rest.ask("tenant", "GET", path), 404, "not-found")
    rest.pool.check()


def test_a_refusal_explains_itself(rest: Rest) -> None:
    body: dict[str, Any] = {"name": "big", "compute_percent": 50, "memory_mib": 90_000}
    body["tenant"] = "acme"
    told = problem(rest.ask("operator", "POST", "vgpus", body), 409, "no-room")
    assert told["lacking"] == [
        {
            "reason": "memory",
            "gpus": 2,
            "most_compute_free_percent": 100,
            "most_memory_free_mib": 80_000,
        }
    ]
    assert told["nodes"][0]["node"] == "n1"
    hidden = problem(rest.ask("tenant", "POST", "vgpus", dict(body, tenant=None)), 409, "no-room")
    assert "nodes" not in hidden
    assert "n1" not in json.dumps(hidden)


def test_groups(rest: Rest) -> None:
    specs = [{"name": f"g{number}", "compute_percent": 60} for number in range(2)]
    made = rest.ask("tenant", "POST", "vgpus/group", {"vgpus": specs})
    assert made.status_code == 201
    items = made.json()["items"]
    assert len({item["gpu_id"] for item in items}) == 2
    assert {item["group_id"] for item in items} == {made.json()["group_id"]}
    more = [{"name": f"h{number}", "compute_percent": 60} for number in range(2)]
    problem(rest.ask("tenant", "POST", "vgpus/group", {"vgpus": more}), 409, "no-room")
    rest.pool.check()


def test_an_idempotency_key_does_a_thing_once(rest: Rest) -> None:
    body: dict[str, Any] = {"name": "a", "compute_percent": 10}
    first = rest.ask("tenant", "POST", "vgpus", body, Idempotency_Key="k1")
    again = rest.ask("tenant", "POST", "vgpus", body, Idempotency_Key="k1")
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    other = dict(body, name="b")
    problem(
        rest.ask("tenant", "POST", "vgpus", other, Idempotency_Key="k1"),
        422,
        "idempotency-key-reused",
    )
    # Another token's key is another key, and a refusal is not kept: it may be possible later.
    assert rest.ask("other", "POST", "vgpus", body, Idempotency_Key="k1").status_code == 201
    big: dict[str, Any] = {"name": "c", "compute_percent": 100}
    problem(rest.ask("tenant", "POST", "vgpus", big | {"selector": {"node": "n2"}}), 409, "no-room")
    rest.pool.node("n2")
    assert rest.ask("tenant", "POST", "vgpus", big, Idempotency_Key="k2").status_code == 201
    key: dict[str, Any] = {"name": "t", "role": "operator"}
    problem(rest.ask("admin", "POST", "tokens", key, Idempotency_Key="k"), 422, "invalid-request")
    rest.pool.check()


def test_etags(rest: Rest) -> None:
    made = rest.make("a")
    path = f"vgpus/{made['id']}"
    changed = rest.ask("tenant", "PATCH", path, {"priority": 3}, If_Match='"1"')
    assert changed.headers["etag"] == '"2"'
    told = problem(
        rest.ask("tenant", "PATCH", path, {"priority": 4}, If_Match='"1"'), 412, "stale-version"
    )
    assert told["version"] == 2
    problem(rest.ask("tenant", "DELETE", path, If_Match='"1"'), 412, "stale-version")
    problem(rest.ask("tenant", "DELETE", path, If_Match="one"), 422, "invalid-request")
    assert rest.ask("tenant", "DELETE", path, If_Match='"9", "2"').status_code == 202


def test_pages(rest: Rest) -> None:
    names = [rest.make(f"v{number}", compute_percent=1)["name"] for number in range(5)]
    found: list[str] = []
    cursor = ""
    while True:
        page = rest.ask("tenant", "GET", f"vgpus?limit=2&cursor={cursor}").json()
        found += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(found) == names
    assert len(found) == 5
    assert rest.ask("other", "GET", "vgpus").json() == {"items": [], "next_cursor": None}
    for cursor in ("!", "AAAA", "%00"):
        answer = rest.ask("tenant", "GET", f"vgpus?cursor={cursor}")
        assert answer.status_code in (200, 422)
    one = rest.ask("operator", "GET", "vgpus?tenant=acme&name=v3").json()["items"]
    assert [item["name"] for item in one] == ["v3"]


def test_tenants_see_only_theirs(rest: Rest) -> None:
    made = rest.make("a")
    for method, body in (("GET", None), ("PATCH", {"priority": 1}), ("DELETE", None)):
        problem(rest.ask("other", method, f"vgpus/{made['id']}", body), 404, "not-found")
    operation = rest.ask("tenant", "DELETE", f"vgpus/{made['id']}").json()
    problem(rest.ask("other", "GET", f"operations/{operation['id']}"), 404, "not-found")
    assert rest.ask("other", "GET", "operations").json()["items"] == []
    problem(rest.ask("other", "GET", f"tenants/{rest.tenant_id}"), 404, "not-found")
    assert [one["name"] for one in rest.ask("other", "GET", "tenants").json()["items"]] == [
        "umbrella"
    ]
    assert rest.ask("other", "GET", "tenants?name=acme").json()["items"] == []
    foreign = {"name": "b", "tenant": "acme"}
    problem(rest.ask("other", "POST", "vgpus", foreign), 404, "not-found")
    seen = rest.ask("other", "GET", "events").json()["items"]
    assert seen == []
    assert rest.ask("tenant", "GET", "events").json()["items"]


def test_on_demand_vgpus_say_where_to_connect(rest: Rest) -> None:
    made = rest.make("a", mode="on-demand")
    assert (made["state"], made["node"]) == ("idle", None)
    places = rest.ask("tenant", "GET", f"vgpus/{made['id']}/places").json()["items"]
    assert places == [{"node": "n1", "endpoint": "tls://n1:9179"}]
    rest.node.claim("s1", made["id"])
    assert rest.ask("tenant", "GET", f"vgpus/{made['id']}").json()["sessions"] == 1
    sessions = rest.ask("tenant", "GET", "sessions").json()["items"]
    assert [(one["number"], one["vgpu_id"]) for one in sessions] == [("s1", made["id"])]
    assert rest.ask("other", "GET", "sessions").json()["items"] == []
    assert rest.ask("operator", "GET", "sessions?limit=1").json()["next_cursor"]


def test_tokens_are_shown_once_and_kept_as_a_hash(rest: Rest) -> None:
    body = {"name": "ci", "role": "tenant", "tenant": "acme"}
    made = rest.ask("admin", "POST", "tokens", body).json()
    secret = made.pop("secret")
    assert rest.ask("admin", "GET", f"tokens/{made['id']}").json() == made
    everything = json.dumps(rest.ask("admin", "GET", "tokens").json())
    everything += json.dumps(rest.ask("admin", "GET", "audit").json())
    assert secret not in everything
    assert digest(secret) not in everything
    rest.secrets["new"] = secret
    assert rest.ask("new", "GET", "vgpus").status_code == 200
    assert rest.ask("admin", "DELETE", f"tokens/{made['id']}").status_code == 204
    time.sleep(1.1)  # as long as a replica remembers one
    problem(rest.ask("new", "GET", "vgpus"), 401, "unauthenticated")


def test_a_token_expires(rest: Rest) -> None:
    body = {"name": "short", "role": "operator", "expires_in_s": 1}
    rest.secrets["short"] = rest.ask("admin", "POST", "tokens", body).json()["secret"]
    time.sleep(1.1)
    problem(rest.ask("short", "GET", "nodes"), 401, "unauthenticated")


def test_every_change_is_in_the_audit_log(rest: Rest) -> None:
    made = rest.make("a")
    rest.ask("operator", "PATCH", f"vgpus/{made['id']}", {"priority": 2}, X_Request_Id="req-7")
    rest.ask("operator", "DELETE", f"vgpus/{made['id']}")
    node = rest.ask("operator", "GET", "nodes").json()["items"][0]
    rest.ask("operator", "PATCH", f"nodes/{node['id']}", {"cordoned": True})
    rest.ask("admin", "POST", "tenants", {"name": "new"})
    entries = rest.ask("admin", "GET", "audit").json()["items"]
    assert [entry["action"] for entry in entries] == [
        "vgpu.create",
        "vgpu.resize",
        "vgpu.delete",
        "node.patch",
        "tenant.create",
    ]
    resized = entries[1]
    assert (resized["before"]["priority"], resized["after"]["priority"]) == (5, 2)
    assert (resized["role"], resized["request_id"]) == ("operator", "req-7")
    problem(rest.ask("operator", "GET", "audit"), 403, "forbidden")


def test_quotas_over_rest(rest: Rest) -> None:
    tenant = rest.ask("admin", "GET", f"tenants/{rest.tenant_id}").json()
    path = f"tenants/{tenant['id']}"
    quota = {"quota": {"vgpus": 1}}
    assert rest.ask("admin", "PATCH", path, quota).json()["quota"]["vgpus"] == 1
    rest.make("a")
    told = problem(rest.ask("tenant", "POST", "vgpus", {"name": "b"}), 403, "quota-exceeded")
    assert told["left"] == {"vgpus": 0, "compute_percent": None, "memory_mib": None}
    problem(rest.ask("admin", "DELETE", path), 409, "in-use")


def test_the_licence_is_shown_and_kept(rest: Rest) -> None:
    rest.pool.licence = Licence(5, 1, "ACME", "licence-1")
    told = rest.ask("operator", "GET", "licence").json()
    assert (told["gpus"], told["gpus_known"], told["expired"]) == (5, 2, True)
    problem(rest.ask("tenant", "POST", "vgpus", {"name": "a"}), 403, "licence")


def test_a_pool_switch_is_an_operation(rest: Rest) -> None:
    gpu = rest.ask("operator", "GET", "gpus").json()["items"][0]
    answer = rest.ask("operator", "PATCH", f"gpus/{gpu['id']}", {"pool": "native"})
    assert answer.status_code == 202
    rest.node.report()
    operation = rest.ask("operator", "GET", answer.headers["location"]).json()
    assert (operation["kind"], operation["state"]) == ("gpu.pool", "done")
    problem(
        rest.ask("operator", "PATCH", f"gpus/{gpu['id']}", {"pool": "draining"}),
        422,
        "invalid-request",
    )


def test_a_pool_switch_can_be_cancelled_and_a_deletion_cannot(rest: Rest) -> None:
    gpu = rest.ask("operator", "GET", "gpus").json()["items"][0]
    switch = rest.ask("operator", "PATCH", f"gpus/{gpu['id']}", {"pool": "native"})
    path = switch.headers["location"]
    problem(rest.ask("tenant", "DELETE", path), 404, "not-found")
    answer = rest.ask("operator", "DELETE", path)
    assert (answer.status_code, answer.json()["state"]) == (200, "failed")
    assert answer.json()["message"] == "cancelled"
    assert rest.ask("operator", "GET", f"gpus/{gpu['id']}").json()["pool_wanted"] == "pooled"
    problem(rest.ask("operator", "DELETE", path), 409, "in-use")
    made = rest.make("a")
    deletion = rest.ask("tenant", "DELETE", f"vgpus/{made['id']}").headers["location"]
    problem(rest.ask("tenant", "DELETE", deletion), 409, "in-use")
    rest.node.report()
    assert rest.ask("tenant", "GET", deletion).json()["state"] == "done"


@pytest.mark.parametrize(
    "body",
    [
        {"name": "a", "compute_percent": 101},
        {"name": "a", "compute_percent": "5"},
        {"name": "A b"},
        {"name": "a", "secret-field": "secret-value"},
        {"name": "a", "selector": {"labels": {"x": 1}}},
        [],
        None,
    ],
)
def test_what_is_not_understood_is_refused_without_repeating_it(rest: Rest, body: Any) -> None:
    told = problem(rest.ask("tenant", "POST", "vgpus", body), 422, "invalid-request")
    assert "secret-value" not in json.dumps(told)


def test_unknown_paths_and_methods(rest: Rest) -> None:
    problem(rest.ask("admin", "GET", "nothing"), 404, "not-found")
    problem(rest.ask("admin", "PUT", "vgpus"), 405, "method-not-allowed")
    problem(rest.ask("nobody", "GET", "nothing"), 401, "unauthenticated")
    huge = {"name": "a" * 300_000}
    problem(rest.ask("tenant", "POST", "vgpus", huge), 413, "request-too-large")


def test_a_token_that_asks_too_often_waits(rest: Rest) -> None:
    with TestClient(make_door(rest.pool, burst=3)) as client:
        headers = {"Authorization": f"Bearer {rest.secrets['tenant']}"}
        answers = [client.get("/api/v1/version", headers=headers) for _ in range(4)]
        told = problem(answers[-1], 429, "too-many-requests")
        assert int(answers[-1].headers["retry-after"]) == told["retry_after_s"] >= 1
        other = {"Authorization": f"Bearer {rest.secrets['other']}"}
        assert client.get("/api/v1/version", headers=other).status_code == 200


def test_wrong_tokens_shut_out_nobody_who_has_a_good_one(rest: Rest) -> None:
    """All of them come from one address, as they do behind a balancer."""
    door = make_door(rest.pool, failures=3)
    with TestClient(door) as client:

        def ask(secret: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {secret}"}
            answer: httpx.Response = client.get("/api/v1/version", headers=headers)
            return answer

        assert ask(rest.secrets["tenant"]).status_code == 200
        statuses = [ask(f"wrong-{number}").status_code for number in range(6)]
        assert statuses == [401, 401, 401, 429, 429, 429]
        assert ask(rest.secrets["tenant"]).status_code == 200


@pytest.mark.parametrize("path", ["vgpus/%00", "vgpus?name=%00", "tenants?name=a%00b"])
def test_zero_bytes_do_not_reach_the_database(rest: Rest, path: str) -> None:
    problem(rest.ask("tenant", "GET", path), 422, "invalid-request")


def test_a_database_that_is_away_is_503(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    rest.make("a")  # the token is remembered for a moment

    def away(_work: object) -> object:
        raise StoreError("connection refused by db.internal", unsure=True)

    monkeypatch.setattr(rest.pool.store, "read", away)
    monkeypatch.setattr(rest.pool.store, "change", away)
    monkeypatch.setattr(rest.pool.store, "allocate", away)
    told = problem(rest.ask("tenant", "GET", "vgpus"), 503, "database-unavailable")
    assert "db.internal" not in json.dumps(told)
    told = problem(rest.ask("tenant", "POST", "vgpus", {"name": "b"}), 503, "database-unavailable")
    assert "Idempotency-Key" in told["detail"]
    problem(rest.ask("nobody", "GET", "/readyz"), 503, "database-unavailable")
    assert rest.ask("nobody", "GET", "/healthz").status_code == 200


def test_a_fault_of_ours_shows_nothing_of_the_inside(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_work: object) -> object:
        raise RuntimeError("secret-value in a trace")

    rest.make("a")
    monkeypatch.setattr(rest.pool.store, "read", broken)
    told = problem(rest.ask("tenant", "GET", "vgpus"), 500, "internal-error")
    assert "secret-value" not in json.dumps(told)
    assert "Traceback" not in json.dumps(told)


def test_metrics(rest: Rest) -> None:
    rest.make("a")
    text = rest.ask("operator", "GET", "/metrics").text
    assert 'gpupool_controller_vgpus{state="placed"} 1.0' in text
    assert "gpupool_controller_compute_held_percent 10.0" in text
    assert 'route="create_vgpu"' in text
    problem(rest.ask("tenant", "GET", "/metrics"), 403, "forbidden")
    problem(rest.ask("nobody", "GET", "/metrics"), 401, "unauthenticated")


def test_a_role_of_a_node_asks_nothing_here(rest: Rest) -> None:
    assert Role.NODE.value == "node"
    problem(rest.ask("node", "GET", "vgpus"), 403, "forbidden")


def test_a_session_is_ended_by_its_own_tenant(rest: Rest) -> None:
    vgpu = rest.make("a")
    facts = SessionReport("3", vgpu["id"], vgpu["gpu_uuid"], "python3", 1000)
    rest.node.sessions.append(facts)
    rest.node.report()
    (session,) = rest.ask("tenant", "GET", "sessions").json()["items"]
    assert (session["number"], session["state"]) == ("3", "running")
    path = f"sessions/{session['id']}"
    problem(rest.ask("other", "DELETE", path), 404, "not-found")
    begun = rest.ask("tenant", "DELETE", path)
    assert begun.status_code == 202
    assert rest.ask("operator", "DELETE", path).json()["id"] == begun.json()["id"]
    assert rest.ask("tenant", "GET", "sessions").json()["items"][0]["state"] == "ending"
    rest.node.sessions.clear()
    rest.node.report()
    assert rest.ask("tenant", "GET", begun.headers["location"]).json()["state"] == "done"
    problem(rest.ask("other", "GET", begun.headers["location"]), 404, "not-found")
    actions = [one["action"] for one in rest.ask("admin", "GET", "audit").json()["items"]]
    assert actions.count("session.end") == 1
    kinds = [one["kind"] for one in rest.ask("tenant", "GET", "events").json()["items"]]
    assert kinds[-2:] == ["session.ending", "session.ended"]


def test_a_node_is_drained_and_takes_clients_again(rest: Rest) -> None:
    path = f"nodes/{rest.node.id}"
    begun = rest.ask("operator", "PUT", f"{path}/drain", {"deadline_s": 60})
    assert begun.status_code == 202
    node = rest.ask("operator", "GET", path).json()
    assert (node["drain"], node["cordoned"]) == ("draining", True)
    assert node["drain_until"] is not None
    problem(rest.ask("operator", "PATCH", path, {"cordoned": False}), 409, "in-use")
    rest.node.report()
    assert rest.ask("operator", "GET", begun.headers["location"]).json()["state"] == "done"
    body = {"name": "late", "compute_percent": 1}
    problem(rest.ask("tenant", "POST", "vgpus", body), 409, "no-room")
    back = rest.ask("operator", "DELETE", f"{path}/drain")
    assert (back.json()["drain"], back.json()["cordoned"]) == ("none", False)
    assert rest.ask("operator", "DELETE", f"{path}/drain").json() == back.json()
    rest.make("late")
    actions = [one["action"] for one in rest.ask("admin", "GET", "audit").json()["items"]]
    assert [one for one in actions if one.startswith("node.")] == ["node.drain", "node.undrain"]
