"""A cgroup (version 2) for each session and each relay of a VM, below the one that hostd runs in.

Needs no rights beyond a delegated cgroup (systemd: Delegate=yes). Where hostd may make groups but
the parent hands out no controllers, sessions still have groups of their own: they are counted and
seen apart, and not limited. See cgroups(7) and Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import logging
import os
import zlib
from pathlib import Path

from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

_WANTED = ("memory", "pids")
# Of a relay (hostd/vsock): itself and its connector, and what full sockets of its 512 connections
# have it keep. The kernel also counts the guest's own pages against it where the relay is the first
# to touch one, so the domain's memory is added.
_RELAY_PROCESSES = 8
_RELAY_MIB = 512
_OWN_SUBGROUP = "hostd"  # DelegateSubgroup= of our unit: the groups go beside it, not below


def own_group(proc: Path = Path("/proc/self")) -> Path | None:
    """The folder of the cgroup that this process runs in; None without version 2."""
    try:
        mounts = (proc / "mountinfo").read_text(encoding="utf-8").splitlines()
        lines = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    # mountinfo, proc(5): fields 4 and 5 are root and mount point, the type follows a lone hyphen.
    found = [line.split() for line in mounts if " - cgroup2 " in line]
    inside = [line[3:] for line in lines if line.startswith("0::")]
    if not found or not inside or "/.." in inside[0]:
        return None
    return Path(found[0][4]) / inside[0].lstrip("/")


class Groups:
    """Makes, fills and removes them. `note` says why there are none or what they cannot limit."""

    def __init__(self, state_dir: Path, threads: int, memory_mib: int) -> None:
        own = own_group()
        self._prefix = f"gpupool-{zlib.crc32(os.fsencode(state_dir)):08x}-"
        self._limits = {"pids.max": str(threads), "memory.max": str(memory_mib << 20)}
        self._parent: Path | None = None
        self.note = "sessions have no cgroup of their own: this machine has no cgroup version 2"
        if own is not None:
            parent = own.parent if own.name == _OWN_SUBGROUP else own
            self.note = self._try(parent)
            self._remove("*")

    @property
    def usable(self) -> bool:
        """Whether sessions get one."""
        return self._parent is not None

    def create(self, session_id: int) -> Path | None:
        """A group for that session with its limits; None when it cannot be had, which is logged."""
        return self._create(str(session_id), self._limits, {"session": session_id})

    def create_relay(self, uuid: str, domain_mib: int) -> Path | None:
        """A group for the relay of that VM, which has so much memory (0: not known, then the
        relay's is not limited); None when it cannot be had, which is logged.
        """
        memory = str((domain_mib + _RELAY_MIB) << 20) if domain_mib else "max"
        limits = {"pids.max": str(_RELAY_PROCESSES), "memory.max": memory}
        return self._create(f"vm-{uuid}", limits, {"uuid": uuid})

    def remove_relay(self, uuid: str) -> bool:
        """After the relay's end. False: somebody is in it still."""
        return self._remove(f"vm-{uuid}")

    def remove_empty(self) -> None:
        """Removes the groups of sessions that have ended, those of an earlier hostd too. Not
        relays': one that is about to start has an empty one.
        """
        self._remove("[0-9]*")

    def _create(self, name: str, limits: dict[str, str], whose: dict[str, object]) -> Path | None:
        if self._parent is None:
            return None
        group = self._parent / f"{self._prefix}{name}"
        try:
            group.mkdir(exist_ok=True)
            for file, value in limits.items():
                if (group / file).exists():
                    (group / file).write_text(value, encoding="ascii")
        except OSError as error:
            log.error("no cgroup", extra=fields({**whose, "error": str(error)}))
            return None
        return group

    def _remove(self, pattern: str) -> bool:
        gone = True
        found = self._parent.glob(f"{self._prefix}{pattern}") if self._parent is not None else ()
        for group in found:
            try:
                group.rmdir()
            except OSError:  # somebody is in it
                gone = False
        return gone

    def _try(self, parent: Path) -> str:
        probe = parent / f"{self._prefix}probe"
        try:
            probe.mkdir(exist_ok=True)
        except OSError as error:
            return (
                f"sessions have no cgroup of their own: {parent}: {error.strerror}; delegate one "
                "(systemd: Delegate=yes)"
            )
        self._parent = parent
        with contextlib.suppress(OSError):  # not ours to hand out, or processes are in the way
            (parent / "cgroup.subtree_control").write_text(
                " ".join(f"+{name}" for name in _WANTED), encoding="ascii"
            )
        absent = [name for name in self._limits if not (probe / name).exists()]
        with contextlib.suppress(OSError):
            probe.rmdir()
        if not absent:
            return ""
        lacks = " and ".join(name.partition(".")[0] for name in absent)
        return (
            f"sessions have cgroups that cannot limit {lacks}: {parent} does not hand these "
            "controllers out (systemd: Delegate=yes and DelegateSubgroup=hostd)"
        )


def join(group: Path, pid: int) -> None:
    """Puts a process into a group. Raises OSError."""
    (group / "cgroup.procs").write_text(str(pid), encoding="ascii")
