"""The vGPUs in the admin API (`admin` has the form of requests and answers).

A vGPU in an answer:

    {"id": 3, "name": "trainer", "mode": "reserved" or "on-demand",
     "compute_percent": 25, "memory_mib": 4096,            0: no share of its own; not limited
     "policy": "elastic" or "hard", "priority": 5,         0 (lowest) to 9
     "users": [1000],                                      uids; empty: whoever may connect
     "gpu": "GPU-...",                                     where it is now; "" on demand, not in use
     "origin": "",                                         the controller's id of it; "": made here
     "vm": "",                                             domain UUID; "": not a virtual machine's
     "sessions": [12, 13],
     "used_mib": 512, "overhead_mib": 480}                 programs' memory; contexts' besides

Anonymous vGPUs, which each belong to one session, have the name "" and numbers from 2**32 on.

Methods, with defaults after the equals sign; what a VGPU argument takes is a name or an id:

    vgpu_create {"name": str, "mode"="on-demand", "compute_percent"=0, "memory_mib"=0,
                 "policy"="elastic", "priority"=5, "users"=[], "gpu"=""}       -> {"vgpu": {...}}
        `gpu`, a UUID, only with mode reserved: there and nowhere else.
    vgpu_list {}                     -> {"vgpus": [{...}], "gpus": [{"gpu": "GPU-...",
                                          "left_percent": 75, "left_mib": 60000, "sessions": 2}],
                                         "waiting": [{"vgpu": "", "compute_percent": 50,
                                          "memory_mib": 0, "program": "python3", "pid": 41,
                                          "waited_s": 3, "position": 1}]}
    vgpu_show {"vgpu": VGPU}                                                   -> {"vgpu": {...}}
    vgpu_resize {"vgpu": VGPU, "compute_percent"=, "memory_mib"=, "policy"=, "priority"=}
        What is not named stays; nothing restarts.                             -> {"vgpu": {...}}
    vgpu_delete {"vgpu": VGPU, "force"=false}                                  -> {"ended": [12]}
        Refused while sessions use it; with force those sessions are ended. Only named ones.

What cannot be done is {"ok": false, "error": text}, where the text says what was asked, what is
left and what to do.
"""

from __future__ import annotations

from typing import Any

from gpupool.hostd.api.admin import BadRequestError, Method
from gpupool.hostd.api.request import choice, only, take
from gpupool.hostd.core.placement import MIB
from gpupool.hostd.core.ports import Clock
from gpupool.hostd.core.vgpu import DEFAULT_PRIORITY, Quota, SharePolicy, Vgpu, VgpuMode
from gpupool.hostd.core.vgpus import VgpuFacts, Vgpus

_QUOTA = ("compute_percent", "memory_mib", "policy", "priority")


class VgpuMethods:
    """Answers requests about the vGPUs of one host. All raise BadRequestError, VgpuError and
    PortError.
    """

    def __init__(self, vgpus: Vgpus, clock: Clock) -> None:
        self._vgpus = vgpus
        self._clock = clock

    def by_name(self) -> dict[str, Method]:
        """For `Admin`."""
        return {
            "vgpu_create": self._create,
            "vgpu_list": self._list,
            "vgpu_show": self._show,
            "vgpu_resize": self._resize,
            "vgpu_delete": self._delete,
        }

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        only(request, "name", "mode", "users", "gpu", *_QUOTA)
        users = take(request, "users", list, [])
        if not all(type(user) is int for user in users):
            raise BadRequestError(f"users: given {users!r}, allowed is a list of user numbers")
        vgpu = Vgpu(
            0,
            _quota(request, Quota(priority=DEFAULT_PRIORITY)),
            take(request, "name", str, ""),
            VgpuMode(choice(request, "mode", [one.value for one in VgpuMode], "on-demand")),
            tuple(users),
            take(request, "gpu", str, ""),
        )
        return {"vgpu": _shown(self._vgpus.create(vgpu))}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        only(request)
        return {
            "vgpus": [_shown(facts) for facts in self._vgpus.all()],
            "gpus": [
                {
                    "gpu": room.gpu,
                    "left_percent": max(0, room.compute_percent),
                    "left_mib": max(0, room.memory_mib),
                    "sessions": room.sessions,
                }
                for room in self._vgpus.rooms()
            ],
            "waiting": self._waiting(),
        }

    def _waiting(self) -> list[dict[str, Any]]:
        now_s = self._clock.monotonic_s()
        return [
            {
                "vgpu": ticket.wanted.vgpu,
                "compute_percent": ticket.wanted.quota.compute_percent,
                "memory_mib": ticket.wanted.quota.memory_mib,
                "program": ticket.program,
                "pid": ticket.pid,
                "waited_s": int(now_s - ticket.since_s),
                "position": position,
            }
            for position, ticket in enumerate(self._vgpus.waiting(), start=1)
        ]

    def _show(self, request: dict[str, Any]) -> dict[str, Any]:
        only(request, "vgpu")
        return {"vgpu": _shown(self._vgpus.facts(self._vgpus.find(_which(request))))}

    def _resize(self, request: dict[str, Any]) -> dict[str, Any]:
        only(request, "vgpu", *_QUOTA)
        vgpu = self._vgpus.find(_which(request))
        _check_ours(vgpu)
        return {"vgpu": _shown(self._vgpus.resize(vgpu.id, _quota(request, vgpu.quota)))}

    def _delete(self, request: dict[str, Any]) -> dict[str, Any]:
        only(request, "vgpu", "force")
        force = take(request, "force", bool, False)
        if not force:
            vgpu = self._vgpus.find(_which(request))
            _check_ours(vgpu)
            if vgpu.vm:
                raise BadRequestError(
                    f"vGPU {vgpu.name} is domain {vgpu.vm}'s; take it from the domain (gpupool vm "
                    "detach), or from its Kata container (gpupool kata release), or use force"
                )
        return {"ended": list(self._vgpus.delete(_which(request), force=force))}


def _check_ours(vgpu: Vgpu) -> None:
    if vgpu.origin:
        raise BadRequestError(
            f"vGPU {vgpu.name} is the controller's ({vgpu.origin}); change it there (gpupool "
            "vgpu ... --controller URL)"
        )


def _shown(facts: VgpuFacts) -> dict[str, Any]:
    return {
        **facts.vgpu.as_dict(),
        "gpu": facts.gpu,
        "sessions": list(facts.sessions),
        "used_mib": -(-facts.use.memory_bytes // MIB),
        "overhead_mib": -(-facts.use.overhead_bytes // MIB),
    }


def _quota(request: dict[str, Any], before: Quota) -> Quota:
    policies = [policy.value for policy in SharePolicy]
    return Quota(
        take(request, "compute_percent", int, before.compute_percent),
        take(request, "memory_mib", int, before.memory_mib),
        SharePolicy(choice(request, "policy", policies, before.policy.value)),
        take(request, "priority", int, before.priority),
    )


def _which(request: dict[str, Any]) -> str | int:
    which = request.get("vgpu")
    if isinstance(which, str) or type(which) is int:
        return which
    raise BadRequestError(f"vgpu: given {which!r}, needed is a name or a number")
