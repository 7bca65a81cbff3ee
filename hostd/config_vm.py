"""The section [vm] of hostd's configuration, checked: keys, and the rights in [[vm.allow]]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpupool.hostd.core.vm import MOST_VGPUS, VmRight
from gpupool.wire.settings import Key

VM_KEYS: tuple[Key, ...] = (
    Key(
        "vm.dir",
        str,
        "",
        "folder of the sockets of virtual machines; empty: `vms` beside `state_dir`, which is "
        "/run/gpupool/vms",
    ),
    Key(
        "vm.kata_dir",
        str,
        "",
        "folder of the tokens of Kata containers; empty: `kata` beside `state_dir`, which is "
        "/run/gpupool/kata",
    ),
    Key("vm.group", str, "kvm", "group that hypervisors run as: it may use sockets and windows"),
    Key(
        "vm.relay",
        str,
        "auto",
        "give each virtual machine a vsock device of our own; auto: where the kernel has no "
        "/dev/vhost-vsock",
        choices=("auto", "yes", "no"),
    ),
    Key(
        "vm.window_mib",
        int,
        4096,
        "largest window of one virtual machine; used only as it is touched",
        low=0,
        high=65536,
    ),
    Key(
        "vm.libvirt_uri",
        str,
        "",
        "libvirt whose domains are followed while they run (qemu:///system): changed metadata "
        "takes effect at once; empty: with their next start",
    ),
    Key("vm.allow.uuid", str, "", "domain that may have vGPUs (`virsh domuuid DOMAIN`)"),
    Key("vm.allow.name", str, "", "its name, for people"),
    Key("vm.allow.tenant", str, "", "whose it is"),
    Key(
        "vm.allow.compute_percent",
        int,
        0,
        "compute share of its vGPUs together; 0: only vGPUs without a share of their own",
        low=0,
        high=100 * MOST_VGPUS,
    ),
    Key(
        "vm.allow.memory_mib",
        int,
        0,
        "memory of its vGPUs together; 0: not limited",
        low=0,
        high=1 << 24,
    ),
    Key("vm.allow.vgpus", int, 1, "how many vGPUs it may have", low=0, high=MOST_VGPUS),
    Key("vm.allow.cid", int, 0, "CID that it must have; 0: any", low=0, high=(1 << 32) - 2),
)
_RIGHT = {key.name.removeprefix("vm.allow."): key for key in VM_KEYS if ".allow." in key.name}


@dataclass(frozen=True, slots=True)
class VmConfig:
    """Where virtual machines come in, and which may."""

    folder: Path
    group: str = "kvm"
    relay: str = "auto"
    window_mib: int = 4096
    libvirt_uri: str = ""
    rights: tuple[VmRight, ...] = ()
    kata_folder: Path = Path("/run/gpupool/kata")


def vm_config(top: Mapping[str, Any], given: Any, problems: list[str]) -> VmConfig:
    """The section; `given` is its `allow`. Adds what is wrong to `problems`."""
    for key in ("vm.dir", "vm.kata_dir"):
        if top[key] and not top[key].startswith("/"):
            problems.append(f"{key}: given {top[key]!r}, allowed is an absolute path")
    beside = Path(top["state_dir"]).parent
    return VmConfig(
        Path(top["vm.dir"]) if top["vm.dir"] else beside / "vms",
        top["vm.group"],
        top["vm.relay"],
        top["vm.window_mib"],
        top["vm.libvirt_uri"],
        _rights(given, problems),
        Path(top["vm.kata_dir"]) if top["vm.kata_dir"] else beside / "kata",
    )


def _rights(given: Any, problems: list[str]) -> tuple[VmRight, ...]:
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        problems.append(f"vm.allow: given {given!r}, allowed is one or more sections [[vm.allow]]")
        return ()
    rights: dict[str, VmRight] = {}
    for number, item in enumerate(given):
        where = f"vm.allow[{number}]"
        wrong = [f"{where}.{name}: no such key" for name in item if name not in _RIGHT]
        for name, key in _RIGHT.items():
            problem = key.check(item.get(name, key.default))
            if problem:
                wrong.append(problem.replace(key.name, f"{where}.{name}", 1))
        problems += wrong
        if wrong:
            continue
        right = VmRight(**{"uuid": "", **item}, configured=True)
        if text := right.check():
            problems.append(f"{where}.{text}")
        elif right.uuid in rights:
            problems.append(f"{where}.uuid: {right.uuid} is listed twice")
        elif right.cid and right.cid in {one.cid for one in rights.values()}:
            problems.append(f"{where}.cid: {right.cid} is listed twice")
        else:
            rights[right.uuid] = right
    return tuple(rights.values())
