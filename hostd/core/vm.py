"""A virtual machine, known by its domain UUID: what it may have, and what it has been given.

A right (`VmRight`) is this host's own word on how much a domain may ask for; what stands in the
domain's XML is only a request, as whoever may edit a domain may write it. A `Vm` is a domain that
was made ready for its start, until it is released.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from gpupool.hostd.core.vgpu import Quota, SharePolicy, VgpuMode, check_name, check_quota

SESSION_PORT, AGENT_PORT = 9177, 9178  # of vsock, on the host
HOST_CID = 2  # vsock(7)
_FIRST_CID = 3
_LAST_CID = 0xFFFF_FFFE  # below VMADDR_CID_ANY
# Numbers that we choose begin here, far from those that libvirt chooses (from 3 up).
_FIRST_OWN_CID = 4096
_MOST_DOMAIN_MIB = 1 << 30
MOST_VGPUS = 16  # of one VM: as many GPUs as one session may have
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FOREIGN = re.compile(r"[^A-Za-z0-9._-]+")
_SHOWN_CHARACTERS = 80  # of a text that somebody else chose


class VmError(ValueError):
    """It cannot be done. The text says what was asked, what is wrong and what to do."""


class VmState(enum.Enum):
    """PREPARING and RELEASING: on the way; a hostd that finds them undoes what is there."""

    PREPARING = "preparing"
    PREPARED = "prepared"
    STARTED = "started"
    RELEASING = "releasing"


@dataclass(frozen=True, slots=True)
class VmRight:
    """What a domain may have, all its vGPUs together."""

    uuid: str
    name: str = ""
    tenant: str = ""  # whose it is
    compute_percent: int = 0  # 0: only vGPUs without a share of their own
    memory_mib: int = 0  # 0: not limited
    vgpus: int = 1
    cid: int = 0  # the one that it must have; 0: any
    configured: bool = False  # stands in the configuration, not in hostd's state

    def check(self) -> str:
        """What is wrong with it; empty when nothing is."""
        most_percent = 100 * MOST_VGPUS
        for what, number, low, high in (
            ("compute_percent", self.compute_percent, 0, most_percent),
            ("memory_mib", self.memory_mib, 0, 1 << 24),
            ("vgpus", self.vgpus, 0, MOST_VGPUS),
        ):
            if not low <= number <= high:
                return f"{what}: given {number}, allowed is {low} to {high}"
        return check_uuid(self.uuid) or (check_cid(self.cid) if self.cid else "")

    def refuses(self, name: str, wanted: Sequence[VmVgpu]) -> str:
        """Why the domain, of that name, may not have that; empty when it may."""
        who = f"domain {name or self.uuid}"
        advice = "change the domain, or its right (gpupool vm allow)"
        percent = sum(one.quota.compute_percent for one in wanted)
        mib = sum(one.quota.memory_mib for one in wanted)
        if len(wanted) > self.vgpus:
            return f"{who} asks for {len(wanted)} vGPUs and may have {self.vgpus}; {advice}"
        if percent > self.compute_percent:
            return (
                f"{who} asks for {percent}% compute and may have {self.compute_percent}%; {advice}"
            )
        unlimited = any(not one.quota.memory_mib for one in wanted)
        if self.memory_mib and (unlimited or mib > self.memory_mib):
            asked = "unlimited memory" if unlimited else f"{mib} MiB of memory"
            return f"{who} asks for {asked} and may have {self.memory_mib} MiB; {advice}"
        return ""

    def as_dict(self) -> dict[str, Any]:
        """For its file and for the admin API."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> VmRight:
        """Reads what as_dict wrote. Raises ValueError for anything else."""
        values = {one.name: content[one.name] for one in fields(cls) if one.name in content}
        for one in fields(cls):
            expected = {"int": int, "str": str, "bool": bool}[str(one.type)]
            if one.name in values and type(values[one.name]) is not expected:
                raise ValueError(f"{one.name}: given {values[one.name]!r}, allowed is {one.type}")
        if "uuid" not in values:
            raise ValueError("uuid: given nothing, needed is the domain's")
        right = cls(**values)
        problem = right.check()
        if problem:
            raise ValueError(problem)
        return right


@dataclass(frozen=True, slots=True)
class VmVgpu:
    """A vGPU that a domain asks for."""

    quota: Quota
    mode: VgpuMode = VgpuMode.RESERVED

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        quota = asdict(self.quota)
        return {**quota, "policy": self.quota.policy.value, "mode": self.mode.value}

    @classmethod
    def from_dict(cls, content: Any) -> VmVgpu:
        """Reads what as_dict wrote. Raises ValueError for anything else."""
        try:
            numbers = [content[key] for key in ("compute_percent", "memory_mib", "priority")]
            if not all(type(number) is int for number in numbers):
                raise ValueError("not a vGPU of a VM: a number is none")
            quota = Quota(numbers[0], numbers[1], SharePolicy(content["policy"]), numbers[2])
            return cls(quota, VgpuMode(content["mode"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a vGPU of a VM: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Vm:
    """A domain that was made ready; also the content of its state file.

    Which vGPUs were made for it stands with the vGPUs themselves (`Vgpu.vm`), so the two cannot
    disagree.
    """

    uuid: str
    name: str
    tenant: str
    state: VmState
    wanted: tuple[VmVgpu, ...]
    cid: int = 0  # 0: not known yet, the hypervisor chooses it
    window_mib: int = 0  # 0: it has none
    relay: bool = False  # its vsock device is our relay; otherwise the kernel's or its hypervisor's
    since: str = ""  # UTC, ISO 8601
    bound: tuple[str, ...] = ()  # vGPUs of the controller's that it uses, by their local names
    domain_mib: int = 0  # its memory, of the machine and not of a GPU; 0: not known
    kata: bool = False  # a Kata container (`katas`), no domain: no folder, window or CID of its own

    @property
    def title(self) -> str:
        """What people are told it is."""
        return f"{'Kata device' if self.kata else 'domain'} {self.name or self.uuid}"

    def moved(self, state: VmState) -> Vm:
        """The same one, a step further."""
        return replace(self, state=state)

    def as_dict(self) -> dict[str, Any]:
        """For the state file."""
        content = {one.name: getattr(self, one.name) for one in fields(self)}
        content["state"] = self.state.value
        content["wanted"] = [one.as_dict() for one in self.wanted]
        content["bound"] = list(self.bound)
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Vm:
        """Reads what as_dict wrote. Raises ValueError for anything else."""
        try:
            # Of a hostd that did not ask for these.
            content = {"domain_mib": 0, "kata": False, **content}
            values = {one.name: content[one.name] for one in fields(cls)}
            values["state"] = VmState(values["state"])
            values["wanted"] = tuple(VmVgpu.from_dict(one) for one in values["wanted"])
            values["bound"] = tuple(str(name) for name in values["bound"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record of a VM: {error!r}") from error
        for one in fields(cls):
            expected = {"int": int, "str": str, "bool": bool}.get(str(one.type))
            if expected is not None and type(values[one.name]) is not expected:
                raise ValueError(f"not a record of a VM: {one.name} is no {one.type}")
        problem = check_uuid(values["uuid"])
        if problem:
            raise ValueError(problem)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class VmOrder:
    """What a domain asks for before it starts."""

    uuid: str
    name: str
    wanted: tuple[VmVgpu, ...]
    window_mib: int = 0
    cid: int = 0  # 0: ours to choose where our relay is its device, else its hypervisor's
    domain_mib: int = 0  # its memory, or what it can be given while it runs; 0: not known
    kata: bool = False


@dataclass(frozen=True, slots=True)
class VmHealth:
    """What the agent in the guest last said of itself."""

    state: str = "unknown"  # "ready", "failed"
    detail: str = ""
    since: str = ""  # UTC, ISO 8601


def owner_of_vm(uuid: str) -> str:
    """Session.owner of that VM's sessions, which are seen and shared by nobody else."""
    return f"vm {uuid}"


def vm_of_owner(owner: str) -> str:
    """The UUID of the VM that such a session belongs to; empty for other sessions."""
    return owner.removeprefix("vm ") if owner.startswith("vm ") else ""


def check_uuid(uuid: str) -> str:
    """What is wrong with it; empty when nothing is. It names files, so nothing else will do."""
    if _UUID.fullmatch(uuid):
        return ""
    return (
        f"uuid: given {uuid[:_SHOWN_CHARACTERS]!r}, allowed is a domain's UUID in lower case with "
        "dashes (virsh domuuid DOMAIN)"
    )


def check_cid(cid: int) -> str:
    """What is wrong with a virtual machine's CID; empty when nothing is."""
    if _FIRST_CID <= cid <= _LAST_CID:
        return ""
    return (
        f"cid: given {cid}, allowed for a virtual machine is {_FIRST_CID} to {_LAST_CID} (0 to 2 "
        "are the hypervisor, this machine itself and the host)"
    )


def check_wanted(wanted: Sequence[VmVgpu]) -> str:
    """What is wrong with a request, whoever makes it; empty when nothing is."""
    if len(wanted) > MOST_VGPUS:
        return f"{len(wanted)} vGPUs were asked for; ask for at most {MOST_VGPUS}"
    return next((text for one in wanted if (text := check_quota(one.quota))), "")


def check_domain(domain_mib: int) -> str:
    """What is wrong with a domain's memory; empty when nothing is."""
    if 0 <= domain_mib <= _MOST_DOMAIN_MIB:
        return ""
    return f"domain_mib: given {domain_mib}, allowed is 0 (not known) to {_MOST_DOMAIN_MIB}"


def free_cid(taken: Container[int]) -> int:
    """One that nobody has."""
    cid = _FIRST_OWN_CID
    while cid in taken:
        cid += 1
    return cid


def vgpu_names(name: str, uuid: str, count: int, taken: Container[str]) -> list[str]:
    """What the vGPUs of a domain of that name are called, as its vGPUs: names that others do not
    have.
    """
    base = _FOREIGN.sub("-", name)[:56].strip("-")
    if not base or check_name(base):
        base = f"vm-{base}".strip("-")[:56]
    names = _numbered(base, count)
    if any(one in taken for one in names):
        names = _numbered(f"vm-{uuid}", count)
    return names


def _numbered(base: str, count: int) -> list[str]:
    return [base, *(f"{base}-{number}" for number in range(2, count + 1))][:count]
