"""`gpupool cdi`: a CDI device that gives containers the guest runtime and a way to hostd."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gpupool.cli import cdi_edits, parameters
from gpupool.hostd.adapters import cdi, native_files

DESCRIPTION = """\
Writes a CDI specification: a device that container runtimes (Docker, Podman, containerd, CRI-O)
give to a container by name. The container needs no NVIDIA driver and no device node: it gets our
libcuda.so.1 and libnvidia-ml.so.1 where loaders look, and the folder of one socket of hostd.

Who has the socket has what it gives: one endpoint of hostd, with its tenant and limits, for every
group of containers that should not share (docs/containers.md). What --compute and --memory say is
what programs ask for unless they say something else; what they may have, hostd decides.
"""
EPILOG = """\
exit codes: 0 written; 1 not possible (the reason is on stderr); 2 the command line is wrong

examples:
  gpupool cdi --output /etc/cdi/gpupool.dev-vgpu_any.json
  docker run --device gpupool.dev/vgpu=any IMAGE python3 train.py
  gpupool cdi --vgpu trainer --output /etc/cdi/gpupool.dev-vgpu_trainer.json
  podman run --device gpupool.dev/vgpu=trainer IMAGE python3 train.py
"""
KIND = "gpupool.dev/vgpu"


def main(
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="where to; not given: print it")
    ] = None,
    socket: Annotated[
        Path, typer.Option(metavar="PATH", help="of hostd, alone in its folder")
    ] = Path("/run/gpupool/containers/hostd.sock"),
    name: Annotated[
        str, typer.Option(metavar="NAME", help="of the device; default: the vGPU's, or any")
    ] = "",
    vgpu: Annotated[str, typer.Option(metavar="NAME", help="the vGPU to use")] = "",
    compute: Annotated[
        int, typer.Option(min=0, max=100, metavar="PERCENT", help="compute share to ask for")
    ] = 0,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="GPU memory to ask for, in MiB, or like 512M, 10G",
            callback=parameters.checked(parameters.quota_mib),
        ),
    ] = None,
    opengl_direct: Annotated[
        bool,
        typer.Option(
            "--opengl-direct",
            help="all programs' OpenGL without a display takes gpupool's EGL (docs/opengl.md)",
        ),
    ] = False,
) -> int:
    """Writes or prints it."""
    if vgpu and (compute or memory):
        raise typer.BadParameter("a vGPU with a name has its own: leave --compute and --memory")
    name = name or vgpu or "any"
    if not cdi.NAME.fullmatch(name):
        raise typer.BadParameter(
            f"{name!r} is no name for a CDI device: letters, digits, and _.:- inside"
        )
    asked = {
        "GPUPOOL_VGPU": vgpu,
        "GPUPOOL_COMPUTE_PERCENT": str(compute or ""),
        "GPUPOOL_MEMORY_MIB": str(parameters.quota_mib(memory) if memory else ""),
    }
    found = native_files.locate()
    wrong = _wrong_with(socket) or _lacking(found, direct=opengl_direct)
    if wrong or found.guest_dir is None:
        print(f"gpupool cdi: {wrong}", file=sys.stderr)
        return 1
    content = specification(name, found.guest_dir, socket, asked, direct=opengl_direct)
    text = json.dumps(content, indent=2) + "\n"
    if output is None:
        sys.stdout.write(text)
        return 0
    try:
        cdi.write_whole(output, text)
    except OSError as error:
        print(f"gpupool cdi: cannot write {output}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def specification(
    name: str, guest_dir: Path, socket: Path, asked: dict[str, str], *, direct: bool = False
) -> dict[str, Any]:
    """The content of the file. `asked`: variables of the guest runtime; empty ones are left out.
    `direct`: GLVND in the container asks gpupool's EGL first.
    """
    mounts = cdi_edits.libraries(guest_dir)
    # The folder, as a socket that is mounted alone would be the old one after a restart of hostd.
    mounts.append(
        {
            "hostPath": str(socket.parent),
            "containerPath": str(socket.parent),
            "options": [*cdi_edits.READ_ONLY, "noexec"],
        }
    )
    variables = {"GPUPOOL_ENDPOINT": f"unix:{socket}", **asked}
    environment = [f"{key}={value}" for key, value in variables.items() if value]
    if direct:
        environment.append(cdi_edits.DIRECT)
    return {
        "cdiVersion": cdi.VERSION,
        "kind": KIND,
        "devices": [{"name": name, "containerEdits": {"env": environment, "mounts": mounts}}],
    }


def _lacking(found: native_files.NativeFiles, *, direct: bool) -> str:
    """What this gpupool cannot give to containers; empty: nothing is missing."""
    if found.guest_dir is None:
        return f"no guest runtime below {found.root}: is gpupool installed?"
    if direct and not (found.guest_dir / cdi_edits.EGL).is_file():
        return (
            f"--opengl-direct: {found.guest_dir} has no {cdi_edits.EGL}; install gpupool again, "
            "or leave the option out"
        )
    return ""


def _wrong_with(socket: Path) -> str:
    """Why containers cannot or should not have the socket's folder; empty: nothing is."""
    advice = (
        f'let hostd listen there first: [[endpoint]] listen = "unix:{socket}" in hostd.toml '
        "(docs/containers.md)"
    )
    if not socket.is_absolute():
        return f"{socket}: the path of a socket must be absolute"
    try:
        names = sorted(each.name for each in socket.parent.iterdir())
        is_socket = stat.S_ISSOCK(socket.lstat().st_mode)
    except OSError as error:
        return f"{socket}: {error.strerror}; {advice}"
    if not is_socket:
        return f"{socket} is no socket; {advice}"
    others = [each for each in names if each != socket.name]
    if others:
        return (
            f"containers would get all of {socket.parent}, and besides {socket.name} there is "
            f"{', '.join(others[:3])}; a socket for containers needs a folder of its own"
        )
    return ""
