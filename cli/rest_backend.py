"""The controller, through its REST interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import quote

from gpupool.cli.backend import RefusedError
from gpupool.cli.model import (
    Event,
    Gpu,
    NewToken,
    Node,
    Operation,
    PoolMove,
    Quota,
    Session,
    Tenant,
    TenantQuota,
    TenantUse,
    Token,
    Vgpu,
    Waiting,
    Wanted,
)
from gpupool.cli.record import Record
from gpupool.cli.rest import Rest
from gpupool.cli.settings import Controller

_DAY_S = 86400
T = TypeVar("T", Vgpu, Token)
_STATES = {"done": "succeeded"}  # the words of hostd, for one word in scripts


class RestBackend:
    """Everything that a controller can do."""

    def __init__(self, controller: Controller, timeout_s: float) -> None:
        """Raises UsageError; asks nothing yet."""
        self._rest = Rest(controller, timeout_s)

    @property
    def where(self) -> str:
        """The URL."""
        return f"controller {self._rest.url}"

    def vgpus(self) -> list[Vgpu]:
        """Those that this token may see."""
        return [self._named(_vgpu(one)) for one in self._rest.pages("/vgpus")]

    def vgpu(self, name: str) -> Vgpu:
        """By its name or id."""
        return self._named(_vgpu(self._find("vGPU", "/vgpus", name)))

    def places(self, name: str) -> list[str]:
        """Where clients of a vGPU dial, the best first."""
        answer = self._rest.get(f"/vgpus/{self.vgpu(name).id}/places")
        read = Record(answer, "the controller's places")
        return read.each("items", lambda one: Record(one, "a place").text("endpoint", ""))

    def waiting(self) -> list[Waiting]:
        """Clients wait at nodes."""
        return []

    def create_vgpus(self, wanted: Wanted) -> list[Vgpu]:
        """One, or a group of them."""
        place = wanted.placement
        if wanted.users or place.gpu:
            raise RefusedError(
                "--user and --gpu are for a standalone hostd; a controller has tenants, and places "
                "vGPUs itself (--node, --model, --label)"
            )
        common: dict[str, object] = {
            "mode": wanted.mode,
            "selector": {
                "models": list(place.models),
                "gpu_memory_mib": place.gpu_memory_mib,
                "node": place.node,
                "labels": place.labels,
            },
        }
        if wanted.tenant:
            common["tenant"] = wanted.tenant
        if place.strategy:
            common["strategy"] = place.strategy
        specs = [{"name": name, **wanted.quota.said} for name in wanted.names]
        if len(specs) == 1:
            return [_vgpu(self._rest.send("POST", "/vgpus", {**common, **specs[0]}))]
        if place.same_node is not None:
            common["same_node"] = place.same_node
        if place.distinct_gpus is not None:
            common["distinct_gpus"] = place.distinct_gpus
        made = self._rest.send("POST", "/vgpus/group", {**common, "vgpus": specs})
        return Record(made, "the controller's group").each("items", _vgpu)

    def resize_vgpu(self, name: str, quota: Quota) -> Vgpu:
        """While it is in use, too."""
        found = self.vgpu(name)
        return _vgpu(self._rest.send("PATCH", f"/vgpus/{found.id}", quota.said))

    def delete_vgpu(self, name: str, end_sessions: bool) -> Operation | None:
        """Its share is free when its node says that it is gone."""
        found = self.vgpu(name)
        if found.sessions and not end_sessions:  # the controller itself does not ask
            raise RefusedError(
                f"vGPU {name} is used by {found.sessions} sessions; end them, or use --force"
            )
        return _operation(self._rest.send("DELETE", f"/vgpus/{found.id}"))

    def gpus(self) -> list[Gpu]:
        """Of all nodes."""
        found = list(self._rest.pages("/gpus"))
        found.sort(key=lambda one: (str(one.get("node")), one.get("position", 0)))
        return [_gpu(one) for one in found]

    def move_gpu(self, move: PoolMove) -> Operation:
        """Begins it."""
        if move.native_for or move.force:
            raise RefusedError(
                "--for and --force are for the hostd of that machine; there, ask it with "
                "--admin-socket"
            )
        found = self._find("GPU", "/gpus", move.gpu, key="uuid")
        body = {"pool": move.pool, "deadline_s": move.deadline_s}
        return _operation(self._rest.send("PATCH", f"/gpus/{found['id']}", body))

    def nodes(self) -> list[Node]:
        """All of them."""
        counts: dict[str, int] = {}
        for one in self.gpus():
            counts[one.node] = counts.get(one.node, 0) + 1
        return [_node(one, counts) for one in self._rest.pages("/nodes")]

    def cordon_node(self, name: str, cordoned: bool) -> None:
        """What is there stays."""
        found = self._find("node", "/nodes", name)
        self._rest.send("PATCH", f"/nodes/{found['id']}", {"cordoned": cordoned})

    def drain_node(self, name: str, deadline_s: int | None) -> Operation:
        """Begins it."""
        found = self._find("node", "/nodes", name)
        body = {"deadline_s": deadline_s}
        return _operation(self._rest.send("PUT", f"/nodes/{found['id']}/drain", body))

    def undrain_node(self, name: str) -> None:
        """Clients and vGPUs may come again."""
        found = self._find("node", "/nodes", name)
        self._rest.send("DELETE", f"/nodes/{found['id']}/drain")

    def remove_node(self, name: str) -> None:
        """Only a lost one."""
        found = self._find("node", "/nodes", name)
        self._rest.send("DELETE", f"/nodes/{found['id']}")

    def tenants(self) -> list[Tenant]:
        """Those that this token may see."""
        return [_tenant(one) for one in self._rest.pages("/tenants")]

    def create_tenant(self, name: str, quota: TenantQuota) -> Tenant:
        """For administrators."""
        body = {"name": name, "quota": asdict(quota)}
        return _tenant(self._rest.send("POST", "/tenants", body))

    def set_quota(self, name: str, quota: TenantQuota) -> Tenant:
        """All of it."""
        found = self._find("tenant", "/tenants", name)
        body = {"quota": asdict(quota)}
        return _tenant(self._rest.send("PATCH", f"/tenants/{found['id']}", body))

    def delete_tenant(self, name: str) -> None:
        """One without vGPUs."""
        found = self._find("tenant", "/tenants", name)
        self._rest.send("DELETE", f"/tenants/{found['id']}")

    def sessions(self) -> list[Session]:
        """Those that this token may see."""
        vgpus = {one.id: one for one in self.vgpus()}
        return [_session(one, vgpus) for one in self._rest.pages("/sessions")]

    def end_session(self, session: str, kill: bool) -> Operation:
        """By what `sessions` shows, the id, or the number where only one node has it."""
        if kill:
            raise RefusedError(
                "--kill is for a hostd; the controller's nodes kill a worker that does not end "
                "within its limits.end_grace_s"
            )
        names = [
            str(one["id"])
            for one in self._rest.pages("/sessions")
            if session in (one.get("id"), one.get("number"), f"{one['node']}/{one['number']}")
        ]
        found = sorted(set(names))  # a session has a row for each vGPU
        if len(found) > 1:
            raise RefusedError(f"several nodes have a session {session}; say NODE/{session}")
        if not found:
            raise RefusedError(f"there is no session {session} that this token may see")
        return _operation(self._rest.send("DELETE", f"/sessions/{quote(found[0], safe='')}"))

    def operations(self) -> list[Operation]:
        """Those that this token may see."""
        return [_operation(one) for one in self._rest.pages("/operations")]

    def operation(self, number: str) -> Operation:
        """By its id."""
        return _operation(self._rest.get(f"/operations/{quote(number, safe='')}"))

    def cancel_operation(self, number: str) -> Operation:
        """Sends a GPU back, or lets a node take clients again."""
        return _operation(self._rest.send("DELETE", f"/operations/{quote(number, safe='')}"))

    def tokens(self) -> list[Token]:
        """Without their secrets."""
        return [self._named(_token(one)) for one in self._rest.pages("/tokens")]

    def create_token(self, name: str, role: str, bound_to: str, days: int | None) -> NewToken:
        """The only answer that has a secret."""
        body: dict[str, object] = {"name": name, "role": role}
        if bound_to:
            body[role] = bound_to  # the roles tenant and node are called like their fields
        if days is not None:
            body["expires_in_s"] = days * _DAY_S
        answer = self._rest.send_secret("/tokens", body)
        return NewToken(_token(answer), Record(answer, "the controller's token").text("secret"))

    def revoke_token(self, token: str) -> None:
        """By its name or id."""
        found = self._find("token", "/tokens", token)
        self._rest.send("DELETE", f"/tokens/{found['id']}")

    def events(self, after: int | None, follow: bool) -> Iterator[Event]:
        """What this token may see."""
        if follow:
            return map(_event, self._rest.follow(after))
        query = {} if after is None else {"after": after}
        return map(_event, self._rest.pages("/events", **query))

    @cached_property
    def _tenant_names(self) -> dict[str, str]:
        return {one.id: one.name for one in self.tenants()}

    def _named(self, one: T) -> T:
        """With the name of its tenant instead of its id."""
        return replace(one, tenant=self._tenant_names.get(one.tenant, one.tenant))

    def _find(self, noun: str, path: str, name: str, key: str = "name") -> Any:
        """The one with that name, or else with that id: names are what people have at hand."""
        found = [one for one in self._rest.pages(path) if name in (one.get(key), one.get("id"))]
        if len(found) > 1:
            ids = ", ".join(str(one["id"]) for one in found)
            raise RefusedError(f"there are several with the name {name}; take an id: {ids}")
        if not found:
            raise RefusedError(f"there is no {noun} {name} that this token may see")
        return found[0]


def _vgpu(content: Any) -> Vgpu:
    one = Record(content, "the controller's vGPU")
    return Vgpu(
        one.text("id"),
        one.text("name"),
        one.text("mode"),
        one.text("policy"),
        one.number("compute_percent"),
        one.number("memory_mib"),
        one.number("priority"),
        one.text("state"),
        gpu=one.text("gpu_uuid", ""),
        node=one.text("node", ""),
        tenant=one.text("tenant_id", ""),
        memory_used_mib=one.maybe("memory_used_mib"),
        sessions=one.maybe("sessions"),
    )


def _gpu(content: Any) -> Gpu:
    one = Record(content, "the controller's GPU")
    pool, wanted = one.text("pool"), one.text("pool_wanted")
    notes = [] if pool == wanted else [f"to {wanted}"]
    notes += [] if one.flag("present") else ["not there"]
    notes += [] if one.flag("licensed") else ["beyond the licence"]
    return Gpu(
        one.text("uuid"),
        one.text("model"),
        one.number("memory_mib"),
        pool,
        one.flag("healthy"),
        one.text("node"),
        one.number("compute_free_percent"),
        one.number("memory_free_mib"),
        one.number("memory_used_mib"),
        one.number("load_percent"),
        note=", ".join(notes),
    )


def _node(content: Any, gpus: dict[str, int]) -> Node:
    one = Record(content, "the controller's node")
    return Node(
        one.text("id"),
        one.text("name"),
        one.text("state"),
        one.flag("cordoned"),
        gpus.get(one.text("name"), 0),
        one.text("endpoint", ""),
        one.text("agent_version", ""),
        one.texts("labels"),
        one.text("heard_at", ""),
        one.text("drain", "none"),
    )


def _session(content: Any, vgpus: dict[str, Vgpu]) -> Session:
    one = Record(content, "the controller's session")
    vgpu = vgpus.get(one.text("vgpu_id", ""))
    return Session(
        f"{one.text('node')}/{one.text('number')}",
        one.text("program", ""),
        vgpu.name if vgpu else one.text("vgpu_id", ""),
        vgpu.gpu if vgpu else one.text("gpu_id", ""),
        one.text("node"),
        one.text("started_at"),
        one.text("state"),
        tenant=one.text("tenant_id", ""),
    )


def _operation(content: Any) -> Operation:
    one = Record(content, "the controller's operation")
    state = _STATES.get(one.text("state"), one.text("state"))
    message = one.text("message", "")
    return Operation(
        one.text("id"),
        one.text("kind"),
        one.text("subject"),
        state,
        one.number("progress_percent"),
        message,
        error=message if state == "failed" else "",
        started=one.text("created_at", ""),
        ended="" if state == "running" else one.text("updated_at", ""),
    )


def _tenant(content: Any) -> Tenant:
    one = Record(content, "the controller's tenant")
    quota = Record(one.inner("quota"), "a tenant's quota")
    use = Record(one.inner("use"), "what a tenant uses")
    keys = ("vgpus", "compute_percent", "memory_mib")
    return Tenant(
        one.text("id"),
        one.text("name"),
        TenantQuota(*(quota.maybe(key) for key in keys)),
        TenantUse(*(use.number(key) for key in keys)),
    )


def _token(content: Any) -> Token:
    one = Record(content, "the controller's token")
    return Token(
        one.text("id"),
        one.text("name"),
        one.text("role"),
        one.text("tenant_id", ""),
        one.text("node", ""),
        one.text("created_at"),
        one.text("expires_at", ""),
    )


def _event(content: Any) -> Event:
    one = Record(content, "the controller's event")
    return Event(
        one.number("number"),
        one.text("time"),
        one.text("kind"),
        one.text("subject"),
        one.text("message"),
        one.text("node_id", ""),
        one.text("tenant_id", ""),
    )
