"""What a worker gives up before it reads its client's first byte: decided here, done by the worker
(hostd/worker/sandbox.hpp) and by the kernel.

Invariant: what `words` says of a session is in force, because a worker that cannot do what it was
ordered to do refuses its session.
"""

from __future__ import annotations

from dataclasses import dataclass, field

UIDS = 1 << 24  # users of their own that tenants get
_SESSIONS_OF_A_TENANT = 64  # at their most threads
AUTO_USER = "gpupool-worker"


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """The section [sandbox] of the configuration."""

    mode: str = "auto"  # auto: what this machine has; required: all of it or no hostd; off
    seccomp: str = "on"  # on, report, off
    landlock: bool = True
    cgroup: bool = True
    worker_user: str = ""
    worker_uid_base: int = 1_900_000_000
    compile_cache: str = "auto"  # auto, yes, no
    cache_dir: str = "/var/cache/gpupool"  # of tenants' own folders
    threads: int = 1024  # most of one worker
    memory_mib: int = 0  # of one worker's cgroup; 0: window and 8 GiB


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine, by number."""

    name: str  # empty: a number without a name
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SandboxFacts:
    """What this machine has."""

    root: bool = False  # hostd may become other users
    seccomp: bool = False
    landlock: int = 0  # its version; 0: none
    account: Account | None = None  # the named worker user, or gpupool-worker if it exists
    device_groups: tuple[int, ...] = ()  # without which a user cannot open the device files
    closed_devices: tuple[str, ...] = ()  # device files that only their owner may open
    cgroup_note: str = ""  # why there are no cgroups, or what they cannot limit
    cgroup: bool = False
    home: str = ""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What every session gets. `missing` says, in words for people, what could not be had."""

    seccomp: str = "off"
    landlock: int = 0
    cgroup: bool = False
    account: Account | None = None  # all workers run as this user
    uid_base: int = 0  # else each tenant's as one of its own from here on; 0: they keep hostd's
    device_groups: tuple[int, ...] = ()
    cache_folder: str = ""  # for compiled code, of all workers
    cache_dir: str = ""  # else each tenant has a folder of its own here
    threads: int = 0
    missing: tuple[str, ...] = field(default=())

    def user(self, tenant: int) -> Account | None:
        """Whom the workers of that tenant run as; None: as hostd.

        One user a tenant and not a session: drivers share memory between processes of one user.
        """
        if self.account is not None or not self.uid_base:
            return self.account
        uid = self.uid_base + tenant % UIDS
        return Account("", uid, uid, self.device_groups)

    def cache(self, tenant: int) -> str:
        """The folder where the driver may keep what it compiles for that tenant; empty: nowhere."""
        user = self.user(tenant)
        if self.cache_folder or not self.cache_dir or user is None:
            return self.cache_folder
        return f"{self.cache_dir}/{user.uid}"

    def words(self, tenant: int) -> tuple[str, ...]:
        """What that tenant's sessions have, for `gpupool status`."""
        user = self.user(tenant)
        found = [f"user {user.name or user.uid}"] if user else []
        if self.seccomp != "off":
            found.append("seccomp" if self.seccomp == "on" else "seccomp (report)")
        if self.landlock:
            found.append(f"landlock {self.landlock}")
        if self.cgroup:
            found.append("cgroup")
        return tuple(found)

    def tls_arguments(self) -> list[str]:
        """What gpupool-tls is told (hostd/tls/main.cpp): a user that no worker has, where there is
        more than one.
        """
        words = ["--sandbox-calls", "yes" if self.seccomp == "on" else "no"]
        words += ["--sandbox-files", "yes" if self.landlock else "no"]
        if self.account is not None:
            return [*words, "--user", str(self.account.uid), "--group", str(self.account.gid)]
        if not self.uid_base:
            return words
        uid = str(self.uid_base + UIDS)
        return [*words, "--user", uid, "--group", uid]

    def arguments(self, tenant: int, cache_folder: str) -> list[str]:
        """What the worker is told (hostd/worker/options.cpp).

        `cache_folder` is `cache` of that tenant, or empty where it cannot be had.
        """
        words = ["--sandbox-calls", self.seccomp]
        words += ["--sandbox-files", "yes" if self.landlock else "no"]
        if cache_folder:
            words += ["--cache-folder", cache_folder]
        user = self.user(tenant)
        if user is not None:
            words += ["--user", str(user.uid), "--group", str(user.gid)]
            words += ["--groups", ",".join(str(group) for group in user.groups)]
            if self.account is None:  # only then does the kernel count one tenant's threads
                words += ["--threads", str(self.threads * _SESSIONS_OF_A_TENANT)]
        return words


def plan(settings: SandboxSettings, facts: SandboxFacts) -> Sandbox:
    """What sessions get on this machine under this configuration."""
    if settings.mode == "off":
        return Sandbox()
    missing: list[str] = []
    seccomp = settings.seccomp
    if seccomp != "off" and not facts.seccomp:
        seccomp = "off"
        missing.append("no system call filter: the kernel or this container has no seccomp")
    if settings.landlock and not facts.landlock:
        missing.append(
            "files are protected by the worker's user only: the kernel has no Landlock (Linux 5.13)"
        )
    if settings.cgroup and facts.cgroup_note:
        missing.append(facts.cgroup_note)
    account, uid_base = _user(settings, facts, missing)
    cache_folder, cache_dir = _cache(settings, facts, account, uid_base)
    return Sandbox(
        seccomp=seccomp,
        landlock=facts.landlock if settings.landlock else 0,
        cgroup=settings.cgroup and facts.cgroup,
        account=account,
        uid_base=uid_base,
        device_groups=facts.device_groups,
        cache_folder=cache_folder,
        cache_dir=cache_dir,
        threads=settings.threads,
        missing=tuple(missing),
    )


def _cache(
    settings: SandboxSettings, facts: SandboxFacts, account: Account | None, uid_base: int
) -> tuple[str, str]:
    """One folder for all, or the parent of each tenant's own.

    Compiled code that one tenant's program leaves behind must not reach another's, and which code
    is there must not show. A hostd that keeps its user serves that user; workers that share a user
    would share the code, which only an operator may want.
    """
    if settings.compile_cache == "no":
        return "", ""
    if account is None and not facts.root:
        return (f"{facts.home}/.nv/ComputeCache" if facts.home else ""), ""
    if account is None and uid_base:
        return "", settings.cache_dir
    return (f"{settings.cache_dir}/shared" if settings.compile_cache == "yes" else ""), ""


def _user(
    settings: SandboxSettings, facts: SandboxFacts, missing: list[str]
) -> tuple[Account | None, int]:
    if not facts.root:
        return None, 0  # hostd serves its own user, as that user
    if facts.account is not None:
        if facts.account.uid == 0:
            missing.append("workers run as root: sandbox.worker_user says so")
            return None, 0
        return facts.account, 0
    if settings.worker_uid_base == 0:
        missing.append("workers run as root: sandbox.worker_uid_base is 0")
        return None, 0
    if facts.closed_devices:
        missing.append(
            "workers run as root: only root may open "
            f"{', '.join(facts.closed_devices)}; open them to a group (docs/security.md)"
        )
        return None, 0
    return None, settings.worker_uid_base
