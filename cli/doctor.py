"""`gpupool doctor`: what this machine lacks, and what to do about each thing."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import resource
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import gpupool
from gpupool.cli import admin
from gpupool.cli.parameters import Json
from gpupool.hostd import private
from gpupool.hostd.adapters import libraries, native_files
from gpupool.hostd.core.gpu import MIN_DRIVER_MAJOR, Inventory

DESCRIPTION = """\
Looks at this machine and says, for everything gpupool needs, whether it is there and what to do if
not. Changes nothing.

  ok    as it should be
  info  worth knowing; nothing to do
  warn  works, but something will be slower or missing
  fail  gpupool cannot work here until this is done
"""
EPILOG = """\
exit codes: 0 nothing failed; 1 something did
example:    gpupool doctor --json | jq '.[] | select(.state == "fail")'
"""

_OPENGL_LIBRARIES = ("libvirglrenderer.so.1", "libEGL.so.1")
_DIRECT = ("libEGL_gpupool.so", "10_gpupool.json")  # what `--opengl direct` takes
_MIN_KERNEL = (5, 6)  # memfd seals (3.17), pidfd_open (5.3), pidfd_getfd (5.6)
_MIN_CORES = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: str  # ok, info, warn, fail
    found: str
    advice: str = ""


def main(as_json: Json = False) -> int:
    """Prints every finding."""
    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.state:<5} {finding.what}: {finding.found}")
            if finding.advice:
                print(f"      -> {finding.advice}")
    return 1 if any(finding.state == "fail" for finding in findings) else 0


def examine() -> list[Finding]:
    """Everything, in the order in which a person would fix it."""
    checks: tuple[Callable[[], list[Finding]], ...] = (
        _kernel,
        _shared_memory,
        _huge_pages,
        _native,
        _opengl,
        _sandbox,
        _gpus,
        _device_files,
        _tls,
        _hostd,
        libvirt_hook,
        _resources,
    )
    return [finding for check in checks for finding in check()]


def _kernel() -> list[Finding]:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if sys.platform != "linux" or platform.machine() != "x86_64":
        found = f"{sys.platform} on {platform.machine()}"
        return [Finding("machine", "fail", found, "gpupool runs on Linux on x86-64 only")]
    if numbers < _MIN_KERNEL:
        return [Finding("kernel", "fail", release, "update to Linux 5.6 or later")]
    return [Finding("kernel", "ok", f"Linux {release}")]


def _shared_memory() -> list[Finding]:
    """Tried, not looked up: a seccomp filter (containers) can forbid what the kernel has."""
    from gpupool.hostd.adapters.window import MemfdWindows
    from gpupool.hostd.core.ports import PortError

    findings = []
    try:
        windows = MemfdWindows()
        windows.close(windows.create(64 << 20))
        findings.append(Finding("sealed shared memory", "ok", "memfd_create works"))
    except PortError as error:
        advice = "allow memfd_create in this container's seccomp profile, or update the kernel"
        findings.append(Finding("sealed shared memory", "fail", str(error), advice))
    try:
        os.close(os.pidfd_open(os.getpid()))
        findings.append(Finding("process descriptors", "ok", "pidfd_open works"))
    except OSError as error:
        advice = "allow pidfd_open in this container's seccomp profile, or update the kernel"
        findings.append(
            Finding("process descriptors", "fail", f"pidfd_open: {error.strerror}", advice)
        )
    return findings


def _huge_pages() -> list[Finding]:
    """Whether windows may have them; docs/memory.md says what they are worth."""
    file = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    try:
        setting = re.search(r"\[(\w+)\]", file.read_text(encoding="ascii"))
    except OSError:
        return []
    chosen = setting.group(1) if setting else "unknown"
    if chosen in ("advise", "within_size", "always", "force"):
        return [Finding("huge pages for shared memory", "ok", chosen)]
    advice = f"`echo advise > {file}` makes pinned memory cheaper to allocate"
    return [Finding("huge pages for shared memory", "info", chosen, advice)]


def _native() -> list[Finding]:
    native = native_files.locate()
    if not native.missing:
        return [Finding("gpupool's own programs", "ok", str(native.root))]
    advice = "install gpupool again (docs/install.md), or set GPUPOOL_NATIVE_DIR to a build folder"
    found = f"missing in {native.root}: {', '.join(native.missing)}"
    return [Finding("gpupool's own programs", "fail", found, advice)]


def _opengl() -> list[Finding]:
    """What programs' OpenGL needs on this host, by either path (docs/opengl.md)."""
    folder = native_files.locate().guest_dir
    missing = [name for name in _DIRECT if folder is None or not (folder / name).is_file()]
    what = "OpenGL for programs, direct"
    if missing:
        found = f"there is no {' and no '.join(missing)} beside libcuda.so.1"
        return [_virgl(), Finding(what, "info", found, "install gpupool again")]
    return [_virgl(), Finding(what, "ok", f"{_DIRECT[0]} is there")]


def _virgl() -> Finding:
    what = "OpenGL for programs"
    if native_files.locate().renderer is None:
        advice = "to have it: apt install libvirglrenderer-dev libegl-dev, then install gpupool"
        return Finding(what, "info", "gpupool-renderer is not built", advice)
    missing = [name for name in _OPENGL_LIBRARIES if not _loads(name)]
    if not missing:
        return Finding(what, "ok", "virglrenderer and EGL are there")
    advice = "Debian, Ubuntu: apt install libvirglrenderer1 libegl1"
    return Finding(what, "info", f"{' and '.join(missing)} cannot be loaded", advice)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _sandbox() -> list[Finding]:
    """What a worker could give up here; asked of the worker itself."""
    from gpupool.hostd.adapters import cgroups, sandbox_facts
    from gpupool.hostd.core.ports import PortError

    try:
        seccomp, landlock = sandbox_facts.probe(native_files.locate().worker)
    except PortError as error:
        return [Finding("sandbox", "warn", str(error))]
    findings = []
    calls = "system call filter (seccomp)"
    if seccomp:
        findings.append(Finding(calls, "ok", "works"))
    else:
        advice = "allow seccomp() in this container, or workers run without"
        findings.append(Finding(calls, "warn", "the kernel or this container has none", advice))
    files = "file access (Landlock)"
    if landlock:
        findings.append(Finding(files, "ok", f"version {landlock}"))
    else:
        advice = "Linux 5.13 or later with landlock in lsm=; else a worker's user is the limit"
        findings.append(Finding(files, "warn", "the kernel has none", advice))
    groups = cgroups.Groups(Path("/run/gpupool/doctor"), 1024, 1024)
    found = "limits memory and threads of each session" if not groups.note else groups.note
    findings.append(Finding("cgroups for sessions", "info" if groups.note else "ok", found))
    root = os.geteuid() == 0
    found = "a hostd run by root gives each worker a user of its own"
    if not root:
        found = f"a hostd run by you starts workers as you (user {os.geteuid()})"
    closed = sandbox_facts.device_access()[1] if root else ()
    if closed:
        advice = "chgrp them to a group and chmod 0660 (docs/security.md)"
        found = f"workers would run as root: only root may open {', '.join(closed)}"
        return [*findings, Finding("user of workers", "warn", found, advice)]
    return [*findings, Finding("user of workers", "ok" if root else "info", found)]


def _gpus() -> list[Finding]:
    from gpupool.hostd.adapters.nvml import NvmlGpus
    from gpupool.hostd.adapters.software_gpu import SoftwareGpus

    nvidia = NvmlGpus().discover()
    findings = [_nvidia(nvidia)]
    libcuda, _ = libraries.find_real("libcuda.so.1")
    if libcuda is not None:
        findings.append(Finding("libcuda", "ok", str(libcuda)))
    software = SoftwareGpus(native_files.locate().software_gpu).discover()
    if software.gpus:
        names = ", ".join(gpu.name for gpu in software.gpus)
        use = "" if nvidia.gpus else "; programs get it as long as there is no NVIDIA card"
        findings.append(Finding("software GPU", "ok", f"{names}{use}"))
    else:
        advice = (
            "install gpupool again"
            if nvidia.gpus
            else "without it and without a card there is no GPU"
        )
        findings.append(
            Finding("software GPU", "warn" if nvidia.gpus else "fail", software.notes[0], advice)
        )
    return findings


def _nvidia(inventory: Inventory) -> Finding:
    if inventory.gpus:
        names = ", ".join(gpu.name for gpu in inventory.gpus)
        return Finding("NVIDIA GPUs", "ok", f"{names} (driver {inventory.driver_version})")
    found = "; ".join(inventory.notes)
    if inventory.driver_version:
        return Finding("NVIDIA GPUs", "fail", found, f"install driver {MIN_DRIVER_MAJOR} or later")
    if _has_nvidia_card():
        advice = f"install NVIDIA's driver, {MIN_DRIVER_MAJOR} (CUDA 12.4) or later"
        return Finding("NVIDIA GPUs", "fail", f"there is a card, but {found}", advice)
    return Finding("NVIDIA GPUs", "info", found)


def _has_nvidia_card() -> bool:
    """From the PCI bus: vendor 0x10de, class 0x03.... (display controller)."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor = (device / "vendor").read_text().strip()
            if vendor == "0x10de" and (device / "class").read_text().startswith("0x03"):
                return True
        except OSError:
            continue  # unplugged meanwhile
    return False


def _tls() -> list[Finding]:
    """Only those who serve or dial tls:// need it."""
    found = []
    for name in ("libssl.so.3", "libssl.so.1.1"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        found.append(name)
    advice = "for endpoints tls:// install OpenSSL (apt-get install openssl)"
    if not found:
        return [Finding("TLS", "info", "no libssl.so.3 or libssl.so.1.1", advice)]
    if shutil.which("openssl") is None:
        text = f"{found[0]}; no openssl command, which makes certificates for hostd"
        return [Finding("TLS", "info", text, advice)]
    return [Finding("TLS", "ok", found[0])]


def _device_files() -> list[Finding]:
    present = [
        path for path in sorted(Path("/dev").glob("nvidia*")) if stat.S_ISCHR(path.stat().st_mode)
    ]
    if not present:
        return []
    closed = [str(path) for path in present if not os.access(path, os.R_OK | os.W_OK)]
    if not closed:
        return [Finding("/dev/nvidia*", "ok", f"{len(present)} device files may be opened")]
    advice = "hostd's user needs them; programs under `gpupool run` do not"
    return [
        Finding("/dev/nvidia*", "warn", f"may not be opened by you: {', '.join(closed)}", advice)
    ]


def _hostd() -> list[Finding]:
    findings = []
    try:
        folder = private.directory()
        if folder.exists():
            private.prepare(folder)
        private.gpu_choice()
        private.idle_timeout_s()
        private.sandbox_mode()
    except private.PrivateDirError as error:
        findings.append(Finding("this user's folder", "fail", str(error)))
    hosts, problems = admin.ask_all(None, "status")
    for host in hosts:
        whose = "this user's hostd" if host["private"] else "hostd"
        sessions = len(host["sessions"])
        found = f"version {host['version']}, pid {host['pid']}, {sessions} sessions"
        findings.append(
            Finding(whose, "ok" if host["gpus"] else "fail", found, "; ".join(host["notes"]))
        )
    findings += [Finding("hostd", "info", problem) for problem in problems]
    if not hosts and not problems:
        findings.append(
            Finding("hostd", "info", "none is running; `gpupool run` starts one for you")
        )
    return findings


def libvirt_hook(folder: Path = Path("/etc/libvirt")) -> list[Finding]:
    """Whether domains of libvirt here can have vGPUs; nothing where there is no libvirt."""
    if not folder.is_dir():
        return []
    what, how = "libvirt's hook", "docs/vms.md has the two commands that install it"
    ours = (Path(gpupool.__file__).parent / "qemu_hooks" / "qemu").read_bytes()
    for hook in (folder / "hooks" / "qemu", folder / "hooks" / "qemu.d" / "gpupool"):
        try:
            text = hook.read_bytes()
        except OSError:
            continue  # none, or one that only root sees
        if text == ours:
            runs = os.access(hook, os.X_OK)
            advice = "" if runs else f"chmod 755 {hook}: libvirt calls programs only"
            return [Finding(what, "ok" if runs else "warn", str(hook), advice)]
        if b"gpupool" in text:
            return [Finding(what, "warn", f"{hook} is of another version of gpupool", how)]
    return [Finding(what, "info", "not installed: its virtual machines get no vGPUs", how)]


def _resources() -> list[Finding]:
    cores = len(os.sched_getaffinity(0))
    found = f"{cores} usable"
    findings = [
        Finding("cores", "ok", found)
        if cores > _MIN_CORES
        else Finding(
            "cores", "warn", found, "client and worker share cores: launches that wait take longer"
        )
    ]
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    amount = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    findings.append(Finding("locked memory (RLIMIT_MEMLOCK)", "info", amount))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    state, advice = (
        ("ok", "") if hard >= 4096 else ("warn", "raise the hard limit: a session takes about four")
    )
    findings.append(Finding("open files (RLIMIT_NOFILE)", state, f"hard limit {hard}", advice))
    return findings
