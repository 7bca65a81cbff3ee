"""A cgroup (version 2) for each session, below the one that hostd runs in.

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


class SessionGroups:
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
            self.remove_empty()

    @property
    def usable(self) -> bool:
        """Whether sessions get one."""
        return self._parent is not None

    def create(self, session_id: int) -> Path | None:
        """A group for that session with its limits; None when it cannot be had, which is logged."""
        if self._parent is None:
            return None
        group = self._parent / f"{self._prefix}{session_id}"
        try:
            group.mkdir(exist_ok=True)
            for name, value in self._limits.items():
                if (group / name).exists():
                    (group / name).write_text(value, encoding="ascii")
        except OSError as error:
            log.error(
                "session has no cgroup",
                extra=fields({"session": session_id, "error": str(error)}),
            )
            return None
        return group

    def remove_empty(self) -> None:
        """Removes the groups of sessions that have ended, those of an earlier hostd too."""
        if self._parent is None:
            return
        for group in self._parent.glob(f"{self._prefix}*"):
            with contextlib.suppress(OSError):  # somebody is in it: the session lives
                group.rmdir()

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
