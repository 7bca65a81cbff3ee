"""`gpupool kata`: containers of Kata that have vGPUs."""

from __future__ import annotations

import dataclasses
import enum
import json
from pathlib import Path
from typing import Annotated

import typer

from gpupool.cli import kata_device, layout, parameters
from gpupool.cli.asking import EXITS, Asking, names, verb
from gpupool.cli.backend import BackendError, RefusedError, UsageError
from gpupool.cli.model import KataDevice
from gpupool.cli.rollout import render
from gpupool.guest import package as guest
from gpupool.hostd.adapters import cdi, native_files

DESCRIPTION = """\
A container of Kata has vGPUs when it is given a CDI device gpupool.dev/kata=NAME that was allowed
here. It needs no GPU, no NVIDIA driver and nothing in its image. A device is for one container at a
time, wherever that runs; which pods may use it is said when it is allowed (docs/kata.md).
"""
APP = layout.group("kata", DESCRIPTION, EXITS)

_known = names(lambda asking: [one.name for one in asking.local.kata_host().devices])

Name = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=_known, help="what the device is called")
]
CdiFolder = Annotated[
    Path, typer.Option(metavar="FOLDER", help="where container runtimes look for CDI devices")
]
Pattern = typer.Option(metavar="PATTERN", help="whose containers may use it; default: any")


class Libraries(str, enum.Enum):
    """Where the container's libcuda.so.1 comes from."""

    HOST = "host"
    GUEST = "guest"


Where = Annotated[
    Libraries,
    typer.Option(
        help="libcuda.so.1 is this host's, or in the guest image (`kata package`)",
        metavar="host|guest",
    ),
]


@verb(
    APP,
    "allow",
    "make a device with vGPUs for a container",
    """\
Tells hostd what a container with this device gets, and writes the CDI file that names it. Again
replaces it; a container that has it keeps what it has. --namespace, --pod and --container are
patterns of the shell's: without them every pod that may name CDI devices may use this one.
""",
    """\
examples:
  gpupool kata allow trainer --compute 25 --memory 4G --namespace research --pod 'trainer-*'
  nerdctl run --runtime io.containerd.kata.v2 --device gpupool.dev/kata=trainer IMAGE ...
""",
)
def allow(
    asking: Asking,
    name: Name,
    compute: parameters.Compute = None,
    memory: parameters.Memory = None,
    count: parameters.Count = 1,
    mode: Annotated[parameters.Mode, parameters.reserved_while("the container runs")] = (
        parameters.Mode.RESERVED
    ),
    policy: parameters.SharePolicy = parameters.Policy.ELASTIC,
    tenant: Annotated[str, typer.Option(metavar="TENANT", help="whose containers they are")] = "",
    namespace: Annotated[str, Pattern] = "",
    pod: Annotated[str, Pattern] = "",
    container: Annotated[str, Pattern] = "",
    libraries: Where = Libraries.HOST,
    cdi_folder: CdiFolder = kata_device.DEFAULT_FOLDER,
    check: Annotated[
        bool, typer.Option("--check", help="say whether that changes anything, and change nothing")
    ] = False,
) -> int:
    """Does it."""
    percent, memory_mib = parameters.size(compute, memory)
    if not cdi.NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a CDI device: it ends in a letter or digit")
    found = native_files.locate()
    if libraries is Libraries.HOST and found.guest_dir is None:
        raise BackendError(f"no guest runtime below {found.root}: is gpupool installed?")
    device = KataDevice(
        name,
        percent,
        memory_mib,
        count,
        mode.value,
        policy.value,
        tenant,
        namespace,
        pod,
        container,
    )
    host = asking.local.kata_host()
    guest_dir = found.guest_dir if libraries is Libraries.HOST else None
    socket = asking.said.admin_socket or kata_device.ADMIN_SOCKET
    content = kata_device.specification(name, f"{host.folder}/{name}", guest_dir, socket)
    file = kata_device.path(cdi_folder, name)
    known = any(_allowed(one) == device for one in host.devices)
    text = json.dumps(content, indent=2) + "\n"
    changed = not known or not _holds(file, text)
    if changed and not check:
        asking.local.allow_kata(device)
        _write(file, text, name)
    if asking.as_json:
        asking.answer(device=device, file=str(file), changed=changed)
    elif check:
        asking.done(f"device {name} {'would change' if changed else 'is as it should be'}")
    else:
        asking.done(f"{content['kind']}={name} may have {_size(device)}; it is in {file}")
    return 0


@verb(
    APP,
    "disallow",
    "forget a device",
    "Forgets devices that no container has, and removes their CDI files.",
    "example:    gpupool kata disallow trainer",
)
def disallow(
    asking: Asking,
    name: Annotated[
        list[str], typer.Argument(metavar="NAME", autocompletion=_known, help="of devices")
    ],
    cdi_folder: CdiFolder = kata_device.DEFAULT_FOLDER,
) -> int:
    """Does it, one after the other."""
    for each in name:
        asking.local.disallow_kata(each)
        file = kata_device.path(cdi_folder, each)
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise BackendError(
                f"hostd has forgotten device {each}, but {file} cannot be removed: {error.strerror}"
            ) from error
        if not asking.as_json:
            asking.done(f"device {each} is forgotten")
    if asking.as_json:
        asking.answer(disallowed=list(name))
    return 0


@verb(
    APP,
    "release",
    "take a device from its container",
    """\
Ends the sessions of the container that has this device, and its token opens nothing any more. The
container itself runs on; it gets a vGPU again when it is made anew.
""",
    "example:    gpupool kata release trainer",
)
def release(asking: Asking, name: Name) -> int:
    """Does it."""
    released = asking.local.release_kata(name)
    if not released:
        raise RefusedError(f"no container has device {name}; `gpupool kata list` shows all")
    if asking.as_json:
        asking.answer(released=name)
    else:
        asking.done(f"device {name} is free")
    return 0


@verb(
    APP,
    "list",
    "show all devices and who has them",
    "Shows the devices of this host, and the containers that have them.",
    """\
examples:
  gpupool kata list
  gpupool kata list --json | jq -r '.devices[] | select(.used_by != "") | .name'
""",
)
def list_all(asking: Asking) -> int:
    """Shows them."""
    devices = asking.local.kata_host().devices
    if asking.as_json:
        asking.answer(devices=list(devices))
        return 0
    header = ("DEVICE", "VGPUS", "FOR", "TENANT", "USED BY", "SANDBOX", "HYPERVISOR", "SESSIONS")
    rows = [
        [
            one.name,
            _size(one),
            "/".join(each or "*" for each in (one.namespace, one.pod, one.container)),
            one.tenant or "-",
            one.used_by or "-",
            one.sandbox[:12] or "-",
            one.hypervisor or "-",
            len(one.sessions) if one.used_by else "-",
        ]
        for one in devices
    ]
    asking.show(header, rows, "no Kata container may have a vGPU; `gpupool kata allow` does it")
    return 0


@verb(
    APP,
    "config",
    "print what Kata's configuration needs",
    """\
Prints a drop-in file for Kata: for a folder config.d beside its configuration.toml. With Kata's
defaults and the libraries of this host there is nothing to change. --no-guest-seccomp is for those
who have switched seccomp on inside the guest, and cannot give containers a profile that allows
AF_VSOCK (docs/kata.md). Asks nobody.
""",
    """\
example:    gpupool kata config --libraries guest > \\
  /opt/kata/share/defaults/kata-containers/runtimes/qemu/config.d/60-gpupool.toml
""",
)
def config(
    asking: Asking,
    libraries: Where = Libraries.HOST,
    no_guest_seccomp: Annotated[
        bool,
        typer.Option(
            "--no-guest-seccomp", help="containers' seccomp profiles do not count in the guest"
        ),
    ] = False,
) -> int:
    """Prints it."""
    guest_libraries = libraries is Libraries.GUEST
    if not guest_libraries and not no_guest_seccomp:
        raise RefusedError("Kata needs no other configuration for this host's libraries")
    text = render(
        "kata/drop-in.toml.j2", guest_libraries=guest_libraries, no_guest_seccomp=no_guest_seccomp
    ).decode()
    if asking.as_json:
        print(json.dumps({"config": text}, indent=2))
    else:
        print(text, end="")
    return 0


@verb(
    APP,
    "package",
    "make the archive for a guest image",
    """\
Writes an archive with the guest's libraries and the CDI specification that mounts them into
containers, for devices with --libraries guest. Unpacked at the root of Kata's guest image, which
must start systemd. Asks nobody.
""",
    """\
example:    gpupool kata package gpupool-kata.tar.gz; tar -C ROOTFS -xzf gpupool-kata.tar.gz
""",
)
def package(
    asking: Asking,
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="what to write")],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder", metavar="FOLDER", help="with libcuda.so.1 for the guest, in place of ours"
        ),
    ] = None,
) -> int:
    """Writes it."""
    try:
        used = folder or guest.find_libraries(guest.PACKAGE)
        files = [name for name in guest.OPENGL if (used / name).is_file()]
        inside = kata_device.in_guest(Path("/", guest.FOLDER, "lib"), files)
        guest.make_kata(archive, json.dumps(inside, indent=2) + "\n", used)
    except (guest.PackageError, OSError) as problem:
        raise RefusedError(str(problem)) from problem
    if asking.as_json:
        print(json.dumps({"archive": str(archive), "libraries": str(used)}, indent=2))
    else:
        asking.also(f"wrote {archive}: {archive.stat().st_size >> 10} KiB, libraries from {used}")
    return 0


def _allowed(device: KataDevice) -> KataDevice:
    """Without who has it."""
    return dataclasses.replace(device, used_by="", sandbox="", hypervisor="", vgpus=(), sessions=())


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        return False


def _write(file: Path, text: str, name: str) -> None:
    try:
        cdi.write_whole(file, text)
    except OSError as error:
        raise BackendError(
            f"hostd allows device {name}, but {file} cannot be written: {error.strerror}; name "
            "another --cdi-folder, or do it as root"
        ) from error


def _size(device: KataDevice) -> str:
    memory = f"{device.memory_mib} MiB" if device.memory_mib else "any memory"
    return f"{device.count} x {device.compute_percent}%, {memory}"
