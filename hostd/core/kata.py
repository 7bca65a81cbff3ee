"""Kata containers that have vGPUs: devices that an operator allows, and who uses them.

A device (`KataDevice`) is a CDI device of this host with vGPUs of its own, for one container at a
time. That container has the device's token in a file: every container of a pod can dial the host,
and the virtual machine around it says only which pod dials.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from gpupool.hostd.core.kata_hypervisor import Hypervisor
from gpupool.hostd.core.vgpu import check_name
from gpupool.hostd.core.vm import VmError, VmRight, VmVgpu, check_uuid, check_wanted

KIND = "gpupool.dev/kata"  # of the CDI devices
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")  # containerd's and CRI-O's, and file names


_Kind = TypeVar("_Kind", "KataContainer", "KataDevice", Hypervisor)


class KataError(VmError):
    """It cannot be done. The text says what was asked, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class KataContainer:
    """A container as its runtime names it."""

    id: str
    sandbox: str  # its pod's; a container that is alone in its virtual machine: its own
    namespace: str = ""  # of Kubernetes; empty outside of it
    pod: str = ""
    name: str = ""
    uid: int = 0  # who runs in it
    bundle: str = ""  # path of its runtime's; that of no other container

    def check(self) -> str:
        """What is wrong with it; empty when nothing is."""
        for what, text in (("container", self.id), ("sandbox", self.sandbox)):
            if not _ID.fullmatch(text):
                return f"{what}: given {text[:80]!r}, allowed is a runtime's id"
        if not 0 <= self.uid < 1 << 32:
            return f"uid: given {self.uid}, allowed is a user's number"
        return ""

    def is_replaced_by(self, other: KataContainer) -> bool:
        """Whether the other one is this one again, as it was or started anew: a pod has one of a
        name at a time, and whoever should have told of its end may have found no hostd.
        """
        again = (self.sandbox, self.name) == (other.sandbox, other.name) and bool(self.name)
        return self.id == other.id or again

    def __str__(self) -> str:
        """For people."""
        pod = "/".join(one for one in (self.namespace, self.pod, self.name) if one)
        return pod or self.id[:16]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> KataContainer:
        """Reads what asdict wrote. Raises ValueError for anything else."""
        one = _read(cls, content)
        if problem := one.check():
            raise ValueError(problem)
        return one


@dataclass(frozen=True, slots=True)
class KataDevice:
    """What one container may have. Patterns are the shell's; empty ones let everybody."""

    name: str
    uuid: str
    vgpus: tuple[VmVgpu, ...]
    tenant: str = ""
    namespace: str = ""
    pod: str = ""
    container: str = ""

    def check(self) -> str:
        """What is wrong with it; empty when nothing is."""
        if not self.vgpus:
            return f"device {self.name}: no vGPU was asked for"
        return check_name(self.name) or check_uuid(self.uuid) or check_wanted(self.vgpus)

    def refuses(self, one: KataContainer) -> str:
        """Why that container may not use it; empty when it may."""
        for what, pattern, given in (
            ("namespace", self.namespace, one.namespace),
            ("pod", self.pod, one.pod),
            ("container", self.container, one.name),
        ):
            if pattern and not fnmatch.fnmatchcase(given, pattern):
                return (
                    f"device {self.name} is for {what} {pattern!r}, and {what} {given!r} asks for "
                    "it (gpupool kata allow says for whom)"
                )
        return ""

    def right(self) -> VmRight:
        """The same, as `Vms` takes it."""
        memory = [one.quota.memory_mib for one in self.vgpus]
        return VmRight(
            self.uuid,
            self.name,
            self.tenant,
            sum(one.quota.compute_percent for one in self.vgpus),
            sum(memory) if all(memory) else 0,
            len(self.vgpus),
        )

    def as_dict(self) -> dict[str, Any]:
        """For its file and for the admin API."""
        content = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**content, "vgpus": [one.as_dict() for one in self.vgpus]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> KataDevice:
        """Reads what as_dict wrote. Raises ValueError for anything else."""
        given = content.get("vgpus")
        if not isinstance(given, list):
            raise ValueError("not a device of Kata's: it has no vGPUs")
        vgpus = tuple(VmVgpu.from_dict(one) for one in given)
        one = _read(cls, {**content, "vgpus": vgpus})
        if problem := one.check():
            raise ValueError(problem)
        return one


@dataclass(frozen=True, slots=True)
class KataUse:
    """A container that has a device; also the content of its state file."""

    device: str
    container: KataContainer
    hypervisor: Hypervisor

    def as_dict(self) -> dict[str, Any]:
        """For the state file and for the admin API."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> KataUse:
        """Reads what as_dict wrote. Raises ValueError for anything else."""
        try:
            name, container = content["device"], KataContainer.from_dict(content["container"])
            use = cls(str(name), container, _read(Hypervisor, content["hypervisor"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record of a Kata container: {error!r}") from error
        if problem := check_name(use.device):
            raise ValueError(problem)
        return use


def _read(kind: type[_Kind], content: Mapping[str, Any]) -> _Kind:
    """Raises ValueError where a field is missing, unknown or of another type."""
    if not isinstance(content, Mapping):
        raise ValueError(f"no {kind.__name__}: {content!r}")
    known = {one.name: str(one.type) for one in fields(kind)}
    for name, value in content.items():
        expected = {"int": int, "str": str}.get(known.get(name, ""))
        if name not in known or (expected is not None and type(value) is not expected):
            raise ValueError(f"{name}: given {value!r}, which no {kind.__name__} has")
    try:
        return kind(**content)
    except TypeError as error:
        raise ValueError(str(error)) from error
