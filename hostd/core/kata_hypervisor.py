"""Which virtual machine a hypervisor's process is, read from its command line.

What Kata's runtimes write there and where their sockets lie is from their sources
(github.com/kata-containers/kata-containers, commit 7c6ba40c54ea, August 2026):

| hypervisor | command line | how its guest reaches us | source |
|---|---|---|---|
| QEMU | `-device vhost-vsock-pci,...,guest-cid=N` | the kernel's CID N | govmm/qemu/qemu.go, |
| | (-ccw and -device elsewhere) | | qemu/cmdline_generator.rs |
| Cloud Hypervisor | `--api-socket DIR/clh-api.sock` | DIR/clh.sock_PORT | clh.go |
| | `--api-socket DIR/ch-api.sock` | DIR/ch-vm.sock_PORT | ch/utils.rs |
| Firecracker | `--api-sock DIR/run/...` | DIR/kata.hvsock_PORT | fc.go, firecracker/inner.rs |
| | `--id ID`, in a jail | JAIL/ID/root/kata.hvsock_PORT | the same |
| Dragonball | `-id ID`; it is the shim | /run/kata/ID/root/kata.hvsock_PORT | runtime-rs |

JAIL: /run/vc/firecracker, of runtime-rs /run/kata/firecracker.

The `_PORT` sockets are what both hypervisors document as hybrid vsock: whoever listens there gets
the guest's connections to port PORT of CID 2.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

from gpupool.hostd.core.vm import check_cid

_CLOUD_SOCKETS = {"clh-api.sock": "clh.sock", "ch-api.sock": "ch-vm.sock"}
_HYBRID = "kata.hvsock"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Hypervisor:
    """The process around one sandbox."""

    kind: str  # "qemu", "cloud-hypervisor", "firecracker", "dragonball"
    pid: int
    start_ticks: int  # with the pid: this process and no later one
    cid: int = 0  # where the kernel brings connections; 0: `socket` does
    socket: str = ""  # base path: `_PORT` comes behind it


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What a command line says."""

    kind: str
    cid: int = 0
    sockets: tuple[str, ...] = ()  # base paths that it may be


class UnknownHypervisorError(ValueError):
    """It is none that we know; the text says what it is."""


def read(words: Sequence[str]) -> CommandLine:
    """Raises UnknownHypervisorError."""
    program = posixpath.basename(words[0]) if words else ""
    if program.startswith("qemu"):
        return _qemu(words)
    if program.startswith(("cloud-hypervisor", "clh")):
        return _cloud_hypervisor(words)
    if program.startswith("firecracker"):
        return _firecracker(program, words)
    if program.startswith("containerd-shim-kata"):
        return _shim(words)
    raise UnknownHypervisorError(
        f"{program or 'a process without a command line'} is no hypervisor that gpupool knows: "
        "QEMU, Cloud Hypervisor, Firecracker or Dragonball"
    )


def _qemu(words: Sequence[str]) -> CommandLine:
    for device in _values(words, "-device"):
        name, *options = device.split(",")
        if not name.startswith("vhost-vsock-"):
            continue
        for option in options:
            key, _, value = option.partition("=")
            if key == "guest-cid" and value.isascii() and value.isdecimal():
                if problem := check_cid(int(value)):
                    raise UnknownHypervisorError(f"QEMU's command line: {problem}")
                return CommandLine("qemu", cid=int(value))
    raise UnknownHypervisorError(
        "QEMU's command line has no vhost-vsock device with a guest-cid; Kata's QEMU has one where "
        "the host has /dev/vhost-vsock"
    )


def _cloud_hypervisor(words: Sequence[str]) -> CommandLine:
    for value in _values(words, "--api-socket"):
        path = value.removeprefix("path=")
        folder, name = posixpath.split(path)
        if name in _CLOUD_SOCKETS and _is_plain(folder):
            return CommandLine(
                "cloud-hypervisor", sockets=(posixpath.join(folder, _CLOUD_SOCKETS[name]),)
            )
    raise UnknownHypervisorError(
        "Cloud Hypervisor's command line has no --api-socket of Kata's "
        f"({' or '.join(sorted(_CLOUD_SOCKETS))})"
    )


def _firecracker(program: str, words: Sequence[str]) -> CommandLine:
    # The jailer names the sandbox, and changes the root: no other path of its counts here.
    for name in _values(words, "--id"):
        if _ID.fullmatch(name):
            return CommandLine(
                "firecracker",
                sockets=tuple(
                    f"{base}/{program}/{name}/root/{_HYBRID}" for base in ("/run/vc", "/run/kata")
                ),
            )
    for value in _values(words, "--api-sock"):
        folder = posixpath.dirname(posixpath.dirname(value))
        if _is_plain(folder):
            return CommandLine("firecracker", sockets=(posixpath.join(folder, _HYBRID),))
    raise UnknownHypervisorError("Firecracker's command line has neither --id nor --api-sock")


def _shim(words: Sequence[str]) -> CommandLine:
    for name in _values(words, "-id"):
        if _ID.fullmatch(name):
            return CommandLine("dragonball", sockets=(f"/run/kata/{name}/root/{_HYBRID}",))
    raise UnknownHypervisorError("the shim's command line has no -id")


def _values(words: Sequence[str], option: str) -> list[str]:
    """`OPTION VALUE` and `OPTION=VALUE`."""
    found = [value for word, value in itertools.pairwise(words) if word == option]
    return found + [word[len(option) + 1 :] for word in words if word.startswith(f"{option}=")]


def _is_plain(folder: str) -> bool:
    """An absolute path that says where it is."""
    return folder.startswith("/") and posixpath.normpath(folder) == folder
