"""`gpupool vm`: virtual machines of libvirt that have vGPUs."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated

import typer

from gpupool.cli import domain, layout, parameters
from gpupool.cli.asking import EXITS, Asking, names, verb
from gpupool.cli.backend import BackendError, Local, RefusedError, UsageError
from gpupool.cli.libvirt_domains import DEFAULT_URI, Libvirt
from gpupool.cli.model import Vm, VmRight
from gpupool.cli.vm_edit import Editor, Outcome, Wish
from gpupool.wire.window import check_window

DESCRIPTION = """\
A virtual machine of libvirt has vGPUs when its definition asks for them (`vm attach`, or by hand:
docs/vms.md) and this machine's hostd allows it so much (`vm allow`; `vm attach` does both). It
needs no GPU and no NVIDIA driver. A DOMAIN is named as virsh names it, or by its UUID.
"""
APP = layout.group("vm", DESCRIPTION, EXITS)
DEFAULT_WINDOW_MIB = 4096  # hostd allows no more unless told; only what is touched is used
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_known = names(lambda _asking: sorted(Libvirt(DEFAULT_URI).names().values()))

DomainName = Annotated[
    str, typer.Argument(metavar="DOMAIN", autocompletion=_known, help="name or UUID")
]
Connect = Annotated[
    str, typer.Option(metavar="URI", help="which libvirt, as virsh --connect takes it")
]
Tenant = Annotated[str, typer.Option(metavar="TENANT", help="whose virtual machine it is")]


@verb(
    APP,
    "attach",
    "give a domain vGPUs",
    """\
Makes the domain's definition ask for vGPUs, adds the devices that it reaches them with, and allows
it so much at this machine's hostd. What an earlier attach added is replaced. A running domain gets
at once what libvirt can plug in, the rest with its next start; the answer says which.
""",
    """\
examples:
  gpupool vm attach web --compute 25 --memory 4G
  gpupool vm attach web --compute 50 --memory 20G --count 2 --policy hard --no-window
""",
)
def attach(
    asking: Asking,
    name: DomainName,
    compute: parameters.Compute = None,
    memory: parameters.Memory = None,
    count: parameters.Count = 1,
    mode: Annotated[parameters.Mode, parameters.reserved_while("it runs")] = (
        parameters.Mode.RESERVED
    ),
    policy: parameters.SharePolicy = parameters.Policy.ELASTIC,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="M",
            callback=parameters.checked(parameters.quota_mib),
            help=f"memory shared with the host, a power of two (default: {DEFAULT_WINDOW_MIB})",
        ),
    ] = None,
    no_window: Annotated[
        bool, typer.Option("--no-window", help="everything goes through vsock")
    ] = False,
    relay: Annotated[
        bool,
        typer.Option(
            "--relay", help="gpupool's own vsock device (default: where the kernel has none)"
        ),
    ] = False,
    no_allow: Annotated[
        bool, typer.Option("--no-allow", help="leave hostd alone; `vm allow` gave the right")
    ] = False,
    tenant: Tenant = "",
    connect: Connect = DEFAULT_URI,
) -> int:
    """Does it."""
    percent, memory_mib = parameters.size(compute, memory)
    if no_window and window is not None:
        raise UsageError("--window and --no-window were both given")
    window_mib = parameters.quota_mib(window) if window is not None else DEFAULT_WINDOW_MIB
    if problem := check_window(window_mib):
        raise UsageError(f"--window {window}: {problem}")
    vgpu = domain.AskedVgpu(percent, memory_mib, count, mode.value, policy.value)
    wish = Wish(vgpu, 0 if no_window else window_mib, relay, tenant)
    libvirt = Libvirt(connect)
    try:
        one = libvirt.find(name)
        hostd = asking.local if libvirt.is_local and not no_allow else None
        _tell(asking, Editor(one, hostd).attach(wish))
    finally:
        libvirt.close()
    return 0


@verb(
    APP,
    "detach",
    "take a domain's vGPUs away",
    """\
Removes from the domain's definition what attach added, and its right where attach gave it. The
programs of a running domain lose their vGPU at once.
""",
    "example:    gpupool vm detach web",
)
def detach(asking: Asking, name: DomainName, connect: Connect = DEFAULT_URI) -> int:
    """Does it."""
    libvirt = Libvirt(connect)
    try:
        one = libvirt.find(name)
        hostd, why = _hostd(asking) if libvirt.is_local else (None, "")
        outcome = Editor(one, hostd).detach()
        # It must work without hostd: that is what the hook advises when hostd is down.
        if why:
            outcome.notes.append(why)
        _tell(asking, outcome)
    finally:
        libvirt.close()
    return 0


@verb(
    APP,
    "show",
    "show what a domain asks for, may have and has",
    "Shows one domain: what its definition asks for, what it may have, and what it has now.",
    "example:    gpupool vm show web --json",
)
def show(asking: Asking, name: DomainName, connect: Connect = DEFAULT_URI) -> int:
    """Shows it."""
    libvirt = Libvirt(connect)
    try:
        one = libvirt.find(name)
        uuid, title = one.uuid, one.name
        asked = domain.request(one.xml(live=False)) if one.persistent else domain.Request()
        now = domain.request(one.xml(live=True)) if one.running else None
    finally:
        libvirt.close()
    host = asking.local.vm_host() if libvirt.is_local else None
    right = next((each for each in host.rights if each.uuid == uuid), None) if host else None
    vm = next((each for each in host.vms if each.uuid == uuid), None) if host else None
    if asking.as_json:
        asking.answer(
            vm={
                "uuid": uuid,
                "name": title,
                "asks": dataclasses.asdict(asked),
                "asks_live": None if now is None else dataclasses.asdict(now),
                "right": None if right is None else dataclasses.asdict(right),
                "now": None if vm is None else dataclasses.asdict(vm),
            }
        )
        return 0
    facts: list[tuple[str, object]] = [
        ("domain", title),
        ("uuid", uuid),
        ("asks for", _asked(asked)),
        *([("asks for, live", _asked(now))] if now is not None and now != asked else []),
        ("may have", _right(right)),
        ("has now", ", ".join(vm.vgpus) if vm else "-"),
    ]
    if vm is not None:
        facts += [(key.lower(), value) for key, value in _cells(uuid, vm, right).items()][2:]
    asking.facts(facts)
    return 0


@verb(
    APP,
    "list",
    "show all that are allowed vGPUs or have some",
    "Shows the domains that hostd allows vGPUs, and those that have some now.",
    """\
examples:
  gpupool vm list
  gpupool vm list --json | jq -r '.vms[].uuid'
""",
)
def list_all(asking: Asking) -> int:
    """Shows them."""
    host = asking.local.vm_host()
    if asking.as_json:
        asking.answer(vms=list(host.vms), allowed=list(host.rights))
        return 0
    vms = {one.uuid: one for one in host.vms}
    rights = {one.uuid: one for one in host.rights}
    cells = [_cells(uuid, vms.get(uuid), rights.get(uuid)) for uuid in sorted({*vms, *rights})]
    header = ("UUID", "NAME", "MAY HAVE", "STATE", "CID", "VGPUS", "SESSIONS", "AGENT", "TENANT")
    rows = [[one[key] for key in header] for one in cells]
    asking.show(
        header, rows, "no domain may have a vGPU; `gpupool vm attach` or `vm allow` does it"
    )
    return 0


@verb(
    APP,
    "allow",
    "let a domain have vGPUs, at most so much",
    """\
Tells hostd what a domain may ask for, all its vGPUs together. A right stays until `vm disallow`;
one that runs keeps what it has. `vm attach` does this itself.
""",
    """\
examples:
  gpupool vm allow web --compute 50 --memory 20G
  gpupool vm allow 2fe20f45-15dc-48bf-8271-c2bcd2e6b34c --compute 100 --memory 40G --vgpus 2
""",
)
def allow(
    asking: Asking,
    name: DomainName,
    compute: Annotated[
        int, typer.Option(metavar="P", min=0, max=1600, help="percent of one GPU, of all together")
    ] = 0,
    memory: parameters.Memory = None,
    vgpus: Annotated[int, typer.Option(metavar="N", min=0, max=16, help="how many vGPUs")] = 1,
    cid: Annotated[
        int, typer.Option(metavar="CID", min=0, help="the vsock number that it must have; 0: any")
    ] = 0,
    tenant: Tenant = "",
    connect: Connect = DEFAULT_URI,
) -> int:
    """Does it."""
    uuid, title = _identify(name, connect)
    right = VmRight(
        uuid,
        title,
        tenant,
        compute,
        parameters.quota_mib(memory) if memory else 0,
        vgpus,
        cid,
    )
    asking.local.allow_vm(right)
    if asking.as_json:
        asking.answer(allowed=right)
    else:
        asking.done(f"domain {title or uuid} may have {_right(right)}")
    return 0


@verb(
    APP,
    "disallow",
    "take a domain's right away",
    "Forgets what a domain may have. One that runs keeps what it has until it ends.",
    "example:    gpupool vm disallow web",
)
def disallow(asking: Asking, name: DomainName, connect: Connect = DEFAULT_URI) -> int:
    """Does it."""
    uuid, title = _identify(name, connect)
    asking.local.disallow_vm(uuid)
    if asking.as_json:
        asking.answer(disallowed=uuid)
    else:
        asking.done(f"domain {title or uuid} may have no vGPU")
    return 0


@verb(
    APP,
    "package",
    "make the archive that a guest needs",
    """\
Writes an archive with the guest's libraries, the guest agent and its systemd unit. Unpacked at the
root of a guest's file system, it makes the guest's programs find their vGPU. Asks nobody.

A .deb or .rpm also enables the agent when it is installed, and takes everything back when it is
removed. dpkg-deb or rpmbuild make them, and have to be on this machine.
""",
    """\
examples:
  gpupool vm package gpupool-guest.tar.gz
  tar -C / -xzf gpupool-guest.tar.gz && systemctl enable --now gpupool-guest-agent   # in the guest
  gpupool vm package gpupool-guest.deb
  apt install ./gpupool-guest.deb                                                       # in it
""",
)
def package(
    asking: Asking,
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="what to write")],
    libraries: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="with libcuda.so.1 for the guest, in place of our own"),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--format", metavar="KIND", help="tar, deb or rpm; default: as FILE's name says"
        ),
    ] = "",
) -> int:
    from gpupool.guest import distribution
    from gpupool.guest import package as guest

    if kind not in ("", *distribution.KINDS):
        raise UsageError(f"--format: given {kind!r}, allowed is {', '.join(distribution.KINDS)}")
    try:
        used = distribution.make_kind(kind or distribution.kind_of(archive), archive, libraries)
    except (guest.PackageError, OSError) as problem:
        raise RefusedError(str(problem)) from problem
    if asking.as_json:
        print(json.dumps({"archive": str(archive), "libraries": str(used)}, indent=2))
    else:
        asking.also(f"wrote {archive}: {archive.stat().st_size >> 10} KiB, libraries from {used}")
    return 0


def _identify(name: str, uri: str) -> tuple[str, str]:
    """UUID and name. A UUID needs no libvirt: the domain may be defined later."""
    if _UUID.fullmatch(name.lower()):
        return name.lower(), ""
    libvirt = Libvirt(uri)
    try:
        one = libvirt.find(name)
        return one.uuid, one.name
    finally:
        libvirt.close()


def _hostd(asking: Asking) -> tuple[Local | None, str]:
    """It, or why not."""
    try:
        return asking.local, ""
    except RefusedError:
        raise
    except BackendError as error:
        return None, str(error)


def _tell(asking: Asking, outcome: Outcome) -> None:
    if asking.as_json:
        asking.answer(domain=outcome)
        return
    if outcome.live:
        asking.also(f"domain {outcome.name} now: {', '.join(outcome.live)}")
    if outcome.next_start:
        asking.also(f"domain {outcome.name} from its next start: {', '.join(outcome.next_start)}")
    for note in outcome.notes:
        asking.also(f"note: {note}")


def _asked(asked: domain.Request) -> str:
    words = [
        f"{one.count} x {one.compute_percent}%, {one.memory_mib} MiB, {one.mode}, {one.policy}"
        for one in asked.vgpus
    ]
    words += [f"window {asked.window_mib} MiB"] if asked.window_mib else []
    words += [asked.channel] if asked.channel else []
    return "; ".join(words) or "nothing"


def _right(right: VmRight | None) -> str:
    if right is None:
        return "nothing"
    memory = f"{right.memory_mib} MiB" if right.memory_mib else "any memory"
    return f"{right.vgpus} x, {right.compute_percent}%, {memory}"


def _cells(uuid: str, vm: Vm | None, right: VmRight | None) -> dict[str, object]:
    name = (vm.name if vm else "") or (right.name if right else "")
    tenant = (vm.tenant if vm else "") or (right.tenant if right else "")
    return {
        "UUID": uuid,
        "NAME": name or "-",
        "MAY HAVE": _right(right),
        "STATE": vm.state if vm else "-",
        "CID": vm.cid or "-" if vm else "-",
        "VGPUS": ",".join(vm.vgpus) if vm else "-",
        "SESSIONS": len(vm.sessions) if vm else "-",
        "AGENT": f"{vm.health} {vm.health_detail}".strip() if vm else "-",
        "TENANT": tenant or "-",
    }
