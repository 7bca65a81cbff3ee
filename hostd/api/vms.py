"""Virtual machines in the admin API (`admin` has the form of requests and answers).

Methods, with defaults after the equals sign; UUID is a domain's, in lower case with dashes:

    vm_allow {"uuid": UUID, "name"="", "tenant"="", "compute_percent"=0, "memory_mib"=0, "vgpus"=1,
              "cid"=0}                                                     -> {"allowed": {...}}
        What that domain may ask for, all its vGPUs together: compute_percent 0: only vGPUs without
        a share of their own; memory_mib 0: not limited; cid 0: any.
    vm_disallow {"uuid": UUID}                                             -> {}
    vm_prepare {"uuid": UUID, "name": str, "vgpus": [VGPU], "window_mib"=0, "cid"=0,
                "domain_mib"=0}
                  -> {"cid": 4096, "folder": "/run/gpupool/vms/UUID", "window": "/dev/shm/..."}
        VGPU is {"compute_percent"=0, "memory_mib"=0, "count"=1, "mode"="reserved",
        "policy"="elastic", "priority"=5}. Before the domain starts; again is no error. cid 0: where
        our relay is its vsock device we choose one, else the answer has 0 and vm_started tells.
        `window` is "" without one. domain_mib: the domain's own memory, which with some more bounds
        that of its relay; 0: not known, not bounded.
    vm_started {"uuid": UUID, "cid"=0}                                     -> {}
    vm_release {"uuid": UUID}                                              -> {"released": true}
        After the domain has ended; false: it was released before, or never prepared.
    vm_change {"uuid": UUID, "vgpus": [VGPU]}                              -> {"vm": {...}}
        While it runs: resized in their order, more at the end, the last ones taken away.
    vm_list {}                               -> {"vms": [{...}], "allowed": [{...}],
                                                 "folder": "/run/gpupool/vms", "relay": true}
        `relay`: each VM's vsock device is ours, at `folder`/UUID/vhost.
    vm_show {"uuid": UUID}                   -> {"vm": {...} or null, "allowed": {...} or null}

A VM in an answer:

    {"uuid": "...", "name": "web", "tenant": "", "cid": 4096, "relay": true, "relay_pid": 123,
     "state": "prepared",                    or "started"; "preparing", "releasing": on the way
     "since": "2026-11-23T14:01:02Z", "folder": "...", "window": "", "window_mib": 0,
     "vgpus": [{"name": "web", "compute_percent": 25, "memory_mib": 4096, "mode": "reserved",
                "policy": "elastic", "priority": 5, "gpu": "GPU-..."}],
     "sessions": [12],
     "health": {"state": "ready", "detail": "", "since": "..."}}   the agent's; "unknown", "failed"

A right in an answer has the fields of vm_allow, and "configured": it stands in hostd's
configuration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from gpupool.hostd.api.admin import BadRequestError, Method
from gpupool.hostd.api.request import choice, only, take
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.vgpu import DEFAULT_PRIORITY, Quota, SharePolicy, VgpuMode
from gpupool.hostd.core.vm import MOST_VGPUS, VmOrder, VmRight, VmVgpu
from gpupool.hostd.core.vms import VmFacts, Vms

_READY_S = 5.0  # for a relay to come up
_END_S = 2.0  # for sessions to end by themselves
_LOOK_S = 0.01

# Waits until hypervisors can reach that VM's device. Raises PortError.
Ready = Callable[[str, float], Awaitable[None]]


class VmMethods:
    """Answers requests about the VMs of one host. All raise BadRequestError, VmError and
    PortError.
    """

    def __init__(
        self,
        vms: Vms,
        ready: Ready,
        folder: Callable[[str], Path],
        window: Callable[[str], Path],
        relay_pid: Callable[[str], int],
    ) -> None:
        self._vms = vms
        self._ready = ready
        self._folder = folder
        self._window = window
        self._relay_pid = relay_pid
        # What takes several steps with a wait between them, by VM. They go when nobody waits.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def by_name(self) -> dict[str, Method]:
        """For `Admin`."""
        return {
            "vm_allow": self._allow,
            "vm_disallow": self._disallow,
            "vm_prepare": self._prepare,
            "vm_started": self._started,
            "vm_release": self._release,
            "vm_change": self._change,
            "vm_list": self._list,
            "vm_show": self._show,
        }

    def _alone(self, uuid: str) -> asyncio.Lock:
        return self._locks.setdefault(uuid, asyncio.Lock())

    def _allow(self, request: dict[str, Any]) -> dict[str, Any]:
        numbers = ("compute_percent", "memory_mib", "cid")
        only(request, "uuid", "name", "tenant", "vgpus", *numbers)
        right = VmRight(
            take(request, "uuid", str, ""),
            take(request, "name", str, ""),
            take(request, "tenant", str, ""),
            vgpus=take(request, "vgpus", int, 1),
            **{key: take(request, key, int, 0) for key in numbers},
        )
        return {"allowed": self._vms.rights.allow(right).as_dict()}

    def _disallow(self, request: dict[str, Any]) -> dict[str, Any]:
        only(request, "uuid")
        self._vms.rights.disallow(take(request, "uuid", str, ""))
        return {}

    async def _prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        only(request, "uuid", "name", "vgpus", "window_mib", "cid", "domain_mib")
        order = VmOrder(
            take(request, "uuid", str, ""),
            take(request, "name", str, ""),
            wanted_vgpus(request),
            take(request, "window_mib", int, 0),
            take(request, "cid", int, 0),
            take(request, "domain_mib", int, 0),
        )
        async with self._alone(order.uuid):
            vm = self._vms.prepare(order)
            try:
                await self._ready(vm.uuid, _READY_S)
            except PortError:
                self._vms.release(vm.uuid)
                raise
        window = str(self._window(vm.uuid)) if vm.window_mib else ""
        return {"cid": vm.cid, "folder": str(self._folder(vm.uuid)), "window": window}

    def _started(self, request: dict[str, Any]) -> dict[str, Any]:
        only(request, "uuid", "cid")
        self._vms.started(take(request, "uuid", str, ""), take(request, "cid", int, 0))
        return {}

    async def _release(self, request: dict[str, Any]) -> dict[str, Any]:
        """Waits a moment for its sessions: whoever starts the domain again at once then finds their
        room free.
        """
        only(request, "uuid")
        uuid = take(request, "uuid", str, "")
        async with self._alone(uuid):
            released = self._vms.release(uuid)
            for _ in range(int(_END_S / _LOOK_S)):
                if not self._vms.sessions_of(uuid):
                    break
                await asyncio.sleep(_LOOK_S)
        return {"released": released}

    def _change(self, request: dict[str, Any]) -> dict[str, Any]:
        only(request, "uuid", "vgpus")
        vm = self._vms.change(take(request, "uuid", str, ""), wanted_vgpus(request))
        return {"vm": self._shown(self._vms.facts(vm))}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        only(request)
        return {
            "vms": [self._shown(facts) for facts in self._vms.all() if not facts.vm.kata],
            "allowed": [right.as_dict() for right in self._vms.rights.all()],
            "folder": str(self._folder("")),
            "relay": self._vms.relay,
        }

    def _show(self, request: dict[str, Any]) -> dict[str, Any]:
        only(request, "uuid")
        uuid = take(request, "uuid", str, "")
        found = [self._shown(facts) for facts in self._vms.all() if facts.vm.uuid == uuid]
        rights = [right.as_dict() for right in self._vms.rights.all() if right.uuid == uuid]
        if not found and not rights:
            raise BadRequestError(
                f"domain {uuid!r} is neither allowed nor prepared here; `gpupool vm list` shows all"
            )
        return {"vm": found[0] if found else None, "allowed": rights[0] if rights else None}

    def _shown(self, facts: VmFacts) -> dict[str, Any]:
        vm = facts.vm
        return {
            "uuid": vm.uuid,
            "name": vm.name,
            "tenant": vm.tenant,
            "cid": vm.cid,
            "relay": vm.relay,
            "relay_pid": self._relay_pid(vm.uuid),
            "state": vm.state.value,
            "since": vm.since,
            "folder": str(self._folder(vm.uuid)),
            "window": str(self._window(vm.uuid)) if vm.window_mib else "",
            "window_mib": vm.window_mib,
            "vgpus": [
                {
                    "name": vgpu.name,
                    "compute_percent": vgpu.quota.compute_percent,
                    "memory_mib": vgpu.quota.memory_mib,
                    "mode": vgpu.mode.value,
                    "policy": vgpu.quota.policy.value,
                    "priority": vgpu.quota.priority,
                    "gpu": vgpu.gpu,
                }
                for vgpu in facts.vgpus
            ],
            "sessions": list(facts.sessions),
            "health": asdict(facts.health),
        }


def wanted_vgpus(request: dict[str, Any]) -> tuple[VmVgpu, ...]:
    """The field `vgpus` of a request. Raises BadRequestError."""
    wanted: list[VmVgpu] = []
    for item in take(request, "vgpus", list, []):
        if not isinstance(item, dict):
            raise BadRequestError(f"vgpus: given {item!r}, allowed is a list of objects")
        fields = ("compute_percent", "memory_mib", "count", "mode", "policy", "priority")
        only(item, *fields, where="each of vgpus")
        count = take(item, "count", int, 1)
        if not 1 <= count <= MOST_VGPUS:
            raise BadRequestError(f"count: given {count}, allowed is 1 to {MOST_VGPUS}")
        quota = Quota(
            take(item, "compute_percent", int, 0),
            take(item, "memory_mib", int, 0),
            SharePolicy(choice(item, "policy", [one.value for one in SharePolicy], "elastic")),
            take(item, "priority", int, DEFAULT_PRIORITY),
        )
        mode = VgpuMode(choice(item, "mode", [one.value for one in VgpuMode], "reserved"))
        wanted += [VmVgpu(quota, mode)] * count
    return tuple(wanted)
