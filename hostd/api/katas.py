"""Kata containers in the admin API (`admin` has the form of requests and answers).

Methods, with defaults after the equals sign:

    kata_allow {"name": str, "vgpus": [VGPU], "tenant"="", "namespace"="", "pod"="", "container"=""}
                                       -> {"device": {...}, "folder": "/run/gpupool/kata/NAME"}
        A device for one container at a time. VGPU as in api/vms.py. namespace, pod and container
        are patterns of the shell's, empty for all. `folder` is to be mounted into the container.
        Again replaces it; a container that has it keeps what it has.
    kata_disallow {"name": str}                                            -> {}
    kata_begin {"name": str, "pid": int, "container": str, "bundle": str, "sandbox": str,
                "namespace"="", "pod"="", "container_name"="", "uid"=0}    -> {"vgpus": [NAME]}
        Before the container runs; again is no error. `pid` is its sandbox's hypervisor, `container`
        and `sandbox` are its runtime's ids, `bundle` is its runtime's folder.
    kata_end {"name": str, "bundle": str}                                  -> {"released": true}
        After the container has ended; false: the device is another's, or nobody's.
    kata_release {"name": str}                                             -> {"released": true}
        Takes the device from the container that has it.
    kata_list {}                                  -> {"devices": [{...}], "folder": "..."}

A device in an answer has the fields of kata_allow, and:

    {"vgpus": [...], "has": ["trainer"], "sessions": [12],
     "use": null or {"container": {"id", "sandbox", "namespace", "pod", "name", "uid", "bundle"},
                     "hypervisor": {"kind", "pid", "start_ticks", "cid", "socket"}}}
"""

from __future__ import annotations

import asyncio
from typing import Any

from gpupool.hostd.api.admin import Method
from gpupool.hostd.api.request import only, take
from gpupool.hostd.api.vms import wanted_vgpus
from gpupool.hostd.core.kata import KataContainer, KataDevice
from gpupool.hostd.core.katas import KataFacts, Katas

_END_S = 2.0  # for sessions to end by themselves
_LOOK_S = 0.01


class KataMethods:
    """Answers requests about the Kata containers of one host. All raise BadRequestError, VmError
    and PortError.
    """

    def __init__(self, katas: Katas, folder: str) -> None:
        """`folder`: with the tokens."""
        self._katas = katas
        self._folder = folder

    def by_name(self) -> dict[str, Method]:
        """For `Admin`."""
        return {
            "kata_allow": self._allow,
            "kata_disallow": self._disallow,
            "kata_begin": self._begin,
            "kata_end": self._end,
            "kata_release": self._release,
            "kata_list": self._list,
        }

    def _allow(self, request: dict[str, Any]) -> dict[str, Any]:
        texts = ("tenant", "namespace", "pod", "container")
        only(request, "name", "vgpus", *texts)
        device = self._katas.allow(
            KataDevice(
                take(request, "name", str, ""),
                "",
                wanted_vgpus(request),
                **{key: take(request, key, str, "") for key in texts},
            )
        )
        return {"device": device.as_dict(), "folder": f"{self._folder}/{device.name}"}

    def _disallow(self, request: dict[str, Any]) -> dict[str, Any]:
        only(request, "name")
        self._katas.disallow(take(request, "name", str, ""))
        return {}

    def _begin(self, request: dict[str, Any]) -> dict[str, Any]:
        texts = ("sandbox", "namespace", "pod", "bundle")
        only(request, "name", "pid", "container", "container_name", "uid", *texts)
        container = KataContainer(
            take(request, "container", str, ""),
            name=take(request, "container_name", str, ""),
            uid=take(request, "uid", int, 0),
            **{key: take(request, key, str, "") for key in texts},
        )
        name, pid = take(request, "name", str, ""), take(request, "pid", int, 0)
        return {"vgpus": [one.name for one in self._katas.begin(name, container, pid)]}

    def _end(self, request: dict[str, Any]) -> dict[str, Any]:
        only(request, "name", "bundle")
        name, bundle = take(request, "name", str, ""), take(request, "bundle", str, "")
        return {"released": self._katas.end(name, bundle)}

    async def _release(self, request: dict[str, Any]) -> dict[str, Any]:
        """Waits a moment for its sessions, so that their room is free when this is answered."""
        only(request, "name")
        name = take(request, "name", str, "")
        released = self._katas.release(name)
        for _ in range(int(_END_S / _LOOK_S)):
            if not any(one.sessions for one in self._katas.all() if one.device.name == name):
                break
            await asyncio.sleep(_LOOK_S)
        return {"released": released}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        only(request)
        return {"devices": [_shown(one) for one in self._katas.all()], "folder": self._folder}


def _shown(facts: KataFacts) -> dict[str, Any]:
    use = facts.use.as_dict() if facts.use else None
    return {
        **facts.device.as_dict(),
        "has": [vgpu.name for vgpu in facts.vgpus],
        "sessions": list(facts.sessions),
        "use": None if use is None else {key: use[key] for key in ("container", "hypervisor")},
    }
