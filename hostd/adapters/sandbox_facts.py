"""What this machine has for sandboxes: asked of the worker program itself, since what a kernel has
a container's own filter can forbid.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import stat
import subprocess
from pathlib import Path

from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.sandbox import AUTO_USER, Account, SandboxFacts, SandboxSettings

_PROBE_TIMEOUT_S = 20


def gather(
    settings: SandboxSettings, program: Path | None, cgroup_note: str, *, cgroup: bool
) -> SandboxFacts:
    """Looks at kernel, users and device files. Raises PortError for a user that is not there."""
    seccomp, landlock = probe(program)
    groups, closed = device_access()
    return SandboxFacts(
        root=os.geteuid() == 0,
        seccomp=seccomp,
        landlock=landlock,
        account=_account(settings.worker_user),
        device_groups=groups,
        closed_devices=closed,
        cgroup=cgroup,
        cgroup_note=cgroup_note,
        home=os.environ.get("HOME", ""),
    )


def probe(program: Path | None) -> tuple[bool, int]:
    """Whether the worker can filter system calls here, and its version of Landlock (0: none)."""
    if program is None:
        return False, 0  # nothing will be started; the client is told why
    try:
        done = subprocess.run(  # noqa: S603 (our own worker)
            [str(program), "--probe-sandbox"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
            env={},
        )
        answer = json.loads(done.stdout)
        return bool(answer["seccomp"]), int(answer["landlock"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise PortError(f"{program} --probe-sandbox failed: {error}") from error


def _account(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name or AUTO_USER)
    except KeyError:
        if name:
            raise PortError(
                f"sandbox.worker_user is {name!r}, and this machine has no such user; make it: "
                f"useradd --system --no-create-home --shell /usr/sbin/nologin {name}"
            ) from None
        return None
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, groups)


def device_access(folder: Path = Path("/dev")) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The groups that open NVIDIA's device files where not everybody may, and the files that no
    group opens.
    """
    groups: set[int] = set()
    closed: list[str] = []
    for path in sorted(folder.glob("nvidia*")):
        with contextlib.suppress(OSError):  # gone meanwhile
            facts = path.stat()
            if not stat.S_ISCHR(facts.st_mode) or facts.st_mode & 0o006 == 0o006:
                continue
            if facts.st_mode & 0o060 == 0o060 and facts.st_gid != 0:
                groups.add(facts.st_gid)
            else:
                closed.append(str(path))
    return tuple(sorted(groups)), tuple(closed)
