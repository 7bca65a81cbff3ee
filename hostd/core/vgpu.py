"""A vGPU: an allocation on one GPU, with a compute share and a memory quota.

Named ones are made by people or by a controller and stay until they are deleted. Anonymous ones
belong to one session and go with it. A reserved one holds its share and memory from its creation;
an on-demand one only while sessions use it, on whatever GPU had room when the first came.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace
from typing import Any

NAME_BYTES = 64  # in a Hello, with its terminator
DEFAULT_PRIORITY = 5
MOST_PRIORITY = 9
_KEY = re.compile(r"~[A-Za-z0-9]{1,62}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")
# Numbers of anonymous vGPUs are made of their session's number; named ones count from 1.
_FIRST_ANONYMOUS = 1 << 32
_MOST_DEVICES = 16  # of one session: usage_page.hpp


class SharePolicy(enum.Enum):
    """elastic: at least its share, more while others leave it idle. hard: never more."""

    ELASTIC = "elastic"
    HARD = "hard"


class VgpuMode(enum.Enum):
    """When a vGPU holds its share and memory: always, or while sessions use it."""

    RESERVED = "reserved"
    ON_DEMAND = "on-demand"


@dataclass(frozen=True, slots=True)
class Quota:
    """What the sessions of a vGPU may use, together."""

    compute_percent: int = 0  # 0: no share of its own, it takes what others leave
    memory_mib: int = 0  # 0: not limited, and nothing is kept for it
    policy: SharePolicy = SharePolicy.ELASTIC
    priority: int = DEFAULT_PRIORITY  # 0 (lowest) to 9

    @property
    def holds(self) -> bool:
        """Whether anything of a GPU is promised."""
        return self.compute_percent > 0 or self.memory_mib > 0


@dataclass(frozen=True, slots=True)
class Vgpu:
    """One vGPU, wherever it is at the moment."""

    id: int
    quota: Quota
    name: str = ""  # empty: anonymous
    mode: VgpuMode = VgpuMode.ON_DEMAND
    users: tuple[int, ...] = ()  # uids that may use it; empty: whoever may come to an endpoint
    gpu: str = ""  # UUID of the GPU of a reserved one
    group: str = ""  # of an anonymous one: whose, where several processes of one program share it
    origin: str = ""  # the controller's id of it; empty: made here
    vm: str = ""  # UUID of the domain that it belongs to, whose clients alone may use it

    def resized(self, quota: Quota) -> Vgpu:
        """The same one with another quota."""
        return replace(self, quota=quota)

    def as_dict(self) -> dict[str, Any]:
        """For its file and for the admin API."""
        return {
            "id": self.id,
            "name": self.name,
            "mode": self.mode.value,
            "compute_percent": self.quota.compute_percent,
            "memory_mib": self.quota.memory_mib,
            "policy": self.quota.policy.value,
            "priority": self.quota.priority,
            "users": list(self.users),
            "gpu": self.gpu,
            "origin": self.origin,
            "vm": self.vm,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Vgpu:
        """Reads what as_dict wrote. Raises ValueError for anything else."""
        try:
            numbers = [content[key] for key in ("id", "compute_percent", "memory_mib", "priority")]
            if not all(type(number) is int for number in [*numbers, *content["users"]]):
                raise ValueError("a number is none")
            quota = Quota(numbers[1], numbers[2], SharePolicy(content["policy"]), numbers[3])
            users = tuple(content["users"])
            mode, name, gpu = VgpuMode(content["mode"]), content["name"], content["gpu"]
            # Not in an older hostd's record.
            origin, vm = content.get("origin", ""), content.get("vm", "")
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a vGPU record: {error!r}") from error
        if not all(isinstance(text, str) for text in (name, gpu, origin, vm)):
            raise ValueError("not a vGPU record: a text is none")
        problem = check_quota(quota) or check_name(name)
        if problem:
            raise ValueError(problem)
        return cls(numbers[0], quota, name, mode, users, gpu, origin=origin, vm=vm)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client asks for."""

    quota: Quota
    vgpu: str = ""  # a named one, whose quota is its own; or "~KEY", for all who say this KEY
    uid: int = -1  # of the client; -1: not known
    owner: str = ""  # who may share a KEY
    vm: str = ""  # UUID of the domain that the client runs in; empty: in none of ours
    more: tuple[str, ...] = ()  # further named ones, each on a GPU of its own
    all_of_them: bool = False  # or none; else as many as there are GPUs for

    @property
    def group(self) -> str:
        """Vgpu.group of the one that it shares; empty: none."""
        return group_of(self.owner, self.vgpu)


@dataclass(frozen=True, slots=True)
class Seat:
    """The place of a session on one of its GPUs. Written down with the session."""

    gpu: str  # UUID
    vgpu: int  # Vgpu.id
    vgpu_row: int  # in the GPU's quota page
    session_row: int  # there, too
    account_row: int  # in the vGPU's account page

    @classmethod
    def from_dict(cls, content: Any) -> Seat:
        """Reads what dataclasses.asdict made. Raises ValueError for anything else."""
        try:
            numbers = [content[key] for key in ("vgpu", "vgpu_row", "session_row", "account_row")]
            if not all(type(number) is int and number >= 0 for number in numbers):
                raise ValueError("not a seat: a number is none")
            return cls(str(content["gpu"]), *numbers)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a seat: {error!r}") from error


def group_of(owner: str, vgpu: str) -> str:
    """Which anonymous vGPU clients share who say that KEY; empty for anything but a KEY."""
    return f"{owner} {vgpu}" if vgpu.startswith("~") else ""


def anonymous_id(session_id: int, index: int) -> int:
    """The number of the vGPU that a session has for itself on its device of that index."""
    return _FIRST_ANONYMOUS + session_id * _MOST_DEVICES + index


def is_anonymous(vgpu_id: int) -> bool:
    """Whether a number is of an anonymous vGPU."""
    return vgpu_id >= _FIRST_ANONYMOUS


def check_name(name: str, *, or_key: bool = False) -> str:
    """What is wrong with a name; empty when nothing is."""
    if _NAME.fullmatch(name) or (or_key and _KEY.fullmatch(name)):
        return ""
    return (
        f"vGPU name {name[:80]!r}: allowed are a letter and then up to 62 letters, digits, dots, "
        "underscores and dashes"
    )


def check_quota(quota: Quota) -> str:
    """What is wrong with these numbers on any GPU; empty when nothing is."""
    for what, number, most in (
        ("compute share", quota.compute_percent, 100),
        ("memory in MiB", quota.memory_mib, 1 << 24),
        ("priority", quota.priority, MOST_PRIORITY),
    ):
        if not 0 <= number <= most:
            return f"{what} {number} was asked for; ask for 0 to {most}"
    if quota.policy is SharePolicy.HARD and not quota.compute_percent:
        return "policy hard was asked for without a compute share; ask for 1 to 100 percent, too"
    return ""
