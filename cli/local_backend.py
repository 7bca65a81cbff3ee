"""A standalone hostd of this machine, through its admin socket (hostd/api has the answers)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpupool.cli import admin
from gpupool.cli.backend import BackendError, RefusedError
from gpupool.cli.model import (
    Gpu,
    KataDevice,
    KataHost,
    Operation,
    PoolMove,
    Quota,
    Session,
    Vgpu,
    Vm,
    VmHost,
    VmRight,
    Waiting,
    Wanted,
)
from gpupool.cli.record import Record

_ACCIDENT = "hostd failed:"  # how hostd/api/admin.py begins what is no refusal


class LocalBackend:
    """Everything that one hostd can do by itself."""

    def __init__(self, admin_socket: str, timeout_s: float) -> None:
        """Finds the one hostd that is meant. Raises BackendError."""
        self._timeout_s = timeout_s
        hosts, problems = admin.ask_all(admin_socket or None, "status")
        if not hosts:
            raise BackendError(
                "; ".join(problems)
                or "no hostd is running on this machine (docs/install.md), and no controller is "
                "named (--controller, GPUPOOL_CONTROLLER, cli.toml)"
            )
        if len(hosts) > 1:
            sockets = ", ".join(host["admin_socket"] for host in hosts)
            raise BackendError(
                f"more than one hostd runs here; name one with --admin-socket: {sockets}"
            )
        self._path = Path(hosts[0]["admin_socket"])

    @property
    def where(self) -> str:
        """The socket."""
        return f"hostd at {self._path}"

    def vgpus(self) -> list[Vgpu]:
        """All named ones, and those of the sessions that run."""
        return self._ask("vgpu_list").each("vgpus", _vgpu)

    def vgpu(self, name: str) -> Vgpu:
        """By its name."""
        return _vgpu(self._call("vgpu_show", vgpu=name)["vgpu"])

    def waiting(self) -> list[Waiting]:
        """In the order in which they will be served."""
        return self._ask("vgpu_list").each("waiting", _waiting)

    def create_vgpus(self, wanted: Wanted) -> list[Vgpu]:
        """One at a time: hostd has one machine to place it on, and no groups."""
        place = wanted.placement
        self._lacks(
            node=place.node,
            model=place.models,
            gpu_memory=place.gpu_memory_mib,
            label=place.labels,
            strategy=place.strategy,
            same_node=place.same_node is not None,
            distinct_gpus=place.distinct_gpus is not None,
            tenant=wanted.tenant,
        )
        if len(wanted.names) != 1:
            raise RefusedError("a standalone hostd makes one vGPU at a time; give one NAME")
        parameters: dict[str, object] = {
            "name": wanted.names[0],
            "mode": wanted.mode,
            **wanted.quota.said,
        }
        if place.gpu:
            parameters["gpu"] = place.gpu
        if wanted.users:
            parameters["users"] = list(wanted.users)
        return [_vgpu(self._call("vgpu_create", **parameters)["vgpu"])]

    def resize_vgpu(self, name: str, quota: Quota) -> Vgpu:
        """While it is in use, too."""
        return _vgpu(self._call("vgpu_resize", vgpu=name, **quota.said)["vgpu"])

    def delete_vgpu(self, name: str, end_sessions: bool) -> None:
        """At once."""
        self._call("vgpu_delete", vgpu=name, force=end_sessions)

    def gpus(self) -> list[Gpu]:
        """Pooled and native ones."""
        room = {one.uuid: one for one in self._ask("vgpu_list").each("gpus", _Room.read)}
        return [_gpu(one, room) for one in self._ask("gpu_list").each("gpus", dict)]

    def move_gpu(self, move: PoolMove) -> Operation:
        """Begins it."""
        parameters: dict[str, object] = {
            "uuid": move.gpu,
            "pool": move.pool,
            "force": move.force,
        }
        if move.native_for:
            parameters["kind"] = move.native_for
        if move.deadline_s is not None:
            parameters["deadline_s"] = move.deadline_s
        return _operation(self._call("gpu_pool", **parameters)["operation"])

    def sessions(self) -> list[Session]:
        """Those that run."""
        return self._ask("status").each("sessions", _session)

    def end_session(self, session: str, kill: bool) -> None:
        """Its client gets errors from then on."""
        if not session.isdecimal():
            raise RefusedError(f"session {session!r}: on this hostd they have numbers")
        self._call("end", session=int(session), kill=kill)

    def operations(self) -> list[Operation]:
        """What goes on, and the last that ended."""
        return self._ask("operation_list").each("operations", _operation)

    def operation(self, number: str) -> Operation:
        """By its number."""
        return _operation(self._call("operation_show", operation=_number(number))["operation"])

    def cancel_operation(self, number: str) -> Operation:
        """Where it still can be."""
        return _operation(self._call("operation_cancel", operation=_number(number))["operation"])

    def vm_host(self) -> VmHost:
        """Its virtual machines, and what they may have."""
        answer = self._ask("vm_list")
        return VmHost(
            answer.text("folder"),
            answer.flag("relay"),
            tuple(answer.each("vms", _vm)),
            tuple(answer.each("allowed", _right)),
        )

    def allow_vm(self, right: VmRight) -> None:
        """Makes or replaces it."""
        content = asdict(right)
        del content["configured"]
        self._call("vm_allow", **content)

    def disallow_vm(self, uuid: str) -> None:
        """What it has now it keeps."""
        self._call("vm_disallow", uuid=uuid)

    def prepare_vm(
        self, uuid: str, name: str, vgpus: list[dict[str, object]], window_mib: int, cid: int
    ) -> None:
        """As the hook does."""
        self._call("vm_prepare", uuid=uuid, name=name, vgpus=vgpus, window_mib=window_mib, cid=cid)

    def started_vm(self, uuid: str, cid: int) -> None:
        """As the hook does."""
        self._call("vm_started", uuid=uuid, cid=cid)

    def change_vm(self, uuid: str, vgpus: list[dict[str, object]]) -> None:
        """While it runs."""
        self._call("vm_change", uuid=uuid, vgpus=vgpus)

    def release_vm(self, uuid: str) -> None:
        """As the hook does."""
        self._call("vm_release", uuid=uuid)

    def kata_host(self) -> KataHost:
        """Its Kata devices, by name."""
        answer = self._ask("kata_list")
        return KataHost(answer.text("folder"), tuple(answer.each("devices", _kata_device)))

    def allow_kata(self, device: KataDevice) -> None:
        """Makes or replaces it."""
        vgpu = {
            "compute_percent": device.compute_percent,
            "memory_mib": device.memory_mib,
            "count": device.count,
            "mode": device.mode,
            "policy": device.policy,
        }
        texts = {key: getattr(device, key) for key in ("tenant", "namespace", "pod", "container")}
        self._call("kata_allow", name=device.name, vgpus=[vgpu], **texts)

    def disallow_kata(self, name: str) -> None:
        """Nobody uses it."""
        self._call("kata_disallow", name=name)

    def release_kata(self, name: str) -> bool:
        """Its container's sessions end."""
        answer = self._call("kata_release", name=name)
        return Record(answer, "hostd's answer").flag("released")

    def _needs_controller(self, what: str) -> BackendError:
        return RefusedError(
            f"{what} are a controller's, and {self.where} was asked; name a controller with "
            "--controller URL, GPUPOOL_CONTROLLER or cli.toml"
        )

    def _lacks(self, **given: object) -> None:
        """Refuses what only a controller can do, rather than ignore it."""
        if said := [f"--{name.replace('_', '-')}" for name, value in given.items() if value]:
            raise self._needs_controller(" and ".join(said))

    def _ask(self, method: str) -> Record:
        return Record(self._call(method), f"hostd's answer to {method}")

    def _call(self, method: str, **parameters: object) -> dict[str, Any]:
        try:
            return admin.call(self._path, method, self._timeout_s, **parameters)
        except (admin.UnreachableError, admin.DeniedError) as error:
            raise BackendError(str(error)) from error
        except admin.AdminError as error:
            text = str(error)
            if text.startswith((_ACCIDENT, f"{self._path}:")):
                raise BackendError(text) from error
            raise RefusedError(text) from error


def _number(text: str) -> int:
    if not text.isdecimal():
        raise RefusedError(f"operation {text!r}: on this hostd they have numbers")
    return int(text)


def _vgpu(content: Any) -> Vgpu:
    one = Record(content, "hostd's vGPU")
    sessions = one.each("sessions", int)
    return Vgpu(
        one.text("id"),
        one.text("name", ""),
        one.text("mode"),
        one.text("policy"),
        one.number("compute_percent"),
        one.number("memory_mib"),
        one.number("priority"),
        "in use" if sessions else ("ready" if one.text("gpu", "") else "idle"),
        gpu=one.text("gpu", ""),
        memory_used_mib=one.maybe("used_mib"),
        sessions=len(sessions),
        users=tuple(one.each("users", int)),
    )


def _waiting(content: Any) -> Waiting:
    one = Record(content, "hostd's waiting client")
    return Waiting(
        one.number("position"),
        one.text("program", ""),
        one.number("pid"),
        one.text("vgpu", ""),
        one.number("compute_percent"),
        one.number("memory_mib"),
        one.number("waited_s"),
    )


@dataclass(frozen=True, slots=True)
class _Room:
    """What is left to give out on one GPU."""

    uuid: str
    compute_percent: int
    memory_mib: int

    @classmethod
    def read(cls, content: Any) -> _Room:
        """As `vgpu_list` has it."""
        one = Record(content, "hostd's GPU")
        return cls(one.text("gpu"), one.number("left_percent"), one.number("left_mib"))


def _gpu(content: Any, rooms: Mapping[str, _Room]) -> Gpu:
    one = Record(content, "hostd's GPU")
    room = rooms.get(one.text("uuid"))
    operation = one.inner("operation")
    return Gpu(
        one.text("uuid"),
        one.text("name"),
        one.number("memory_mib"),
        one.text("state"),
        # vfio takes a card away from the driver, and that is as it should be.
        one.flag("present") or one.text("state") != "pooled",
        compute_free_percent=room.compute_percent if room else None,
        memory_free_mib=room.memory_mib if room else None,
        sessions=len(one.each("sessions", int)),
        operation=_operation(operation).id if operation.get("state") == "running" else "",
        note=one.text("trouble", "") or one.text("cdi", ""),
    )


def _session(content: Any) -> Session:
    one = Record(content, "hostd's session")
    return Session(
        one.text("id"),
        one.text("program", ""),
        one.text("vgpu", ""),
        ",".join(one.each("devices", str)),
        "",
        one.text("since"),
        one.text("state"),
        pid=one.maybe("pid"),
        kind=one.text("kind", "cuda"),  # of an older hostd
    )


def _operation(content: Any) -> Operation:
    one = Record(content, "hostd's operation")
    return Operation(
        one.text("id"),
        one.text("kind"),
        one.text("target"),
        one.text("state"),
        one.number("percent"),
        one.text("progress", ""),
        one.text("goal", ""),
        one.text("error", ""),
        one.text("started", ""),
        one.text("ended", ""),
    )


def _vm(content: Any) -> Vm:
    one = Record(content, "hostd's virtual machine")
    health = Record(one.inner("health"), "hostd's virtual machine")
    return Vm(
        one.text("uuid"),
        one.text("name", ""),
        one.text("tenant", ""),
        one.text("state"),
        one.text("since", ""),
        one.number("cid"),
        one.flag("relay"),
        one.number("window_mib"),
        tuple(one.each("vgpus", lambda each: Record(each, "hostd's vGPU").text("name"))),
        tuple(one.each("sessions", int)),
        health.text("state", "unknown"),
        health.text("detail", ""),
    )


def _kata_device(content: Any) -> KataDevice:
    one = Record(content, "hostd's Kata device")
    vgpus = one.each("vgpus", lambda each: Record(each, "hostd's vGPU"))
    first = vgpus[0] if vgpus else Record({}, "hostd's vGPU")
    use = Record(one.inner("use"), "hostd's Kata container")
    container = Record(use.inner("container"), "hostd's Kata container")
    hypervisor = Record(use.inner("hypervisor"), "hostd's hypervisor")
    names = (container.text(key, "") for key in ("namespace", "pod", "name"))
    return KataDevice(
        one.text("name"),
        first.number("compute_percent", 0),
        first.number("memory_mib", 0),
        len(vgpus),
        first.text("mode", "reserved"),
        first.text("policy", "elastic"),
        one.text("tenant", ""),
        one.text("namespace", ""),
        one.text("pod", ""),
        one.text("container", ""),
        used_by="/".join(name for name in names if name) or container.text("id", ""),
        sandbox=container.text("sandbox", ""),
        hypervisor=hypervisor.text("kind", ""),
        vgpus=tuple(one.each("has", str)),
        sessions=tuple(one.each("sessions", int)),
    )


def _right(content: Any) -> VmRight:
    one = Record(content, "hostd's right of a virtual machine")
    return VmRight(
        one.text("uuid"),
        one.text("name", ""),
        one.text("tenant", ""),
        one.number("compute_percent"),
        one.number("memory_mib"),
        one.number("vgpus"),
        one.number("cid"),
        one.flag("configured"),
    )
