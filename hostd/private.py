"""The hostd that `gpupool run` starts for one user: where it lives, and what it compares before
others join it.

It never answers for the system: its folder is never /run/gpupool. Files in the folder:
hostd.sock, admin.sock, token (0600, new at every start), start.lock (held while somebody starts or
joins, or while an idle hostd leaves), lock (held by the hostd that lives), hostd.log, sessions/.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from gpupool.hostd.config import SYSTEM_DIR

GPU_CHOICES = ("auto", "nvidia", "software")
SANDBOX_MODES = ("auto", "required", "off")
_IDLE_TIMEOUT_S = 60


class PrivateDirError(RuntimeError):
    """The user's folder cannot be trusted or made. The text says why and what to do."""


def directory(environment: Mapping[str, str] = os.environ) -> Path:
    """GPUPOOL_RUNTIME_DIR, else $XDG_RUNTIME_DIR/gpupool, else /tmp/gpupool-UID.

    Not made, not checked.
    """
    named = environment.get("GPUPOOL_RUNTIME_DIR", "")
    if named:
        if not named.startswith("/"):
            raise PrivateDirError(f"GPUPOOL_RUNTIME_DIR is {named!r}; it must be an absolute path")
        chosen = Path(named)
    else:
        chosen = _default(environment)
    if chosen.resolve() == SYSTEM_DIR.resolve():
        raise PrivateDirError(
            f"{chosen} belongs to the system's hostd; set GPUPOOL_RUNTIME_DIR to a folder of your "
            "own"
        )
    return chosen


def _default(environment: Mapping[str, str]) -> Path:
    # prepare() checks mode and owner: nobody else can have put it there.
    fallback = Path(f"/tmp/gpupool-{os.getuid()}")  # noqa: S108
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if not runtime.startswith("/"):
        return fallback
    try:
        facts = Path(runtime).stat()
    except OSError:
        return fallback  # after su or in containers the variable often names what is not there
    usable = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
    chosen = Path(runtime) / "gpupool"
    return chosen if usable and chosen.resolve() != SYSTEM_DIR.resolve() else fallback


def prepare(path: Path) -> None:
    """Makes the folder, or checks one that is there: ours, no symbolic link, closed to others.

    Raises PrivateDirError.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise PrivateDirError(
            f"cannot make {path}: {error.strerror}; set GPUPOOL_RUNTIME_DIR"
        ) from error
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise PrivateDirError(
            f"{path} is no folder (or a symbolic link); remove it or set GPUPOOL_RUNTIME_DIR"
        )
    if facts.st_uid != os.getuid():
        raise PrivateDirError(
            f"{path} belongs to user {facts.st_uid}, not to you; set GPUPOOL_RUNTIME_DIR to your "
            "own folder"
        )
    if facts.st_mode & 0o077:
        raise PrivateDirError(f"{path} is open to other users; run: chmod 700 {path}")


def settings(version: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a hostd and everybody who joins it must agree on."""
    names = sorted(name for name in environment if name.startswith("GPUPOOL_SOFTGPU_"))
    chosen = {
        name: environment[name]
        for name in ("GPUPOOL_NATIVE_DIR", "GPUPOOL_GPU", "GPUPOOL_SANDBOX", *names)
        if environment.get(name)
    }
    return {"version": version, **chosen}


def gpu_choice(environment: Mapping[str, str] = os.environ) -> str:
    """GPUPOOL_GPU, or `auto`. Raises PrivateDirError for another word."""
    choice = environment.get("GPUPOOL_GPU", "") or "auto"
    if choice not in GPU_CHOICES:
        raise PrivateDirError(
            f"GPUPOOL_GPU is {choice!r}; it must be one of {', '.join(GPU_CHOICES)}"
        )
    return choice


def sandbox_mode(environment: Mapping[str, str] = os.environ) -> str:
    """GPUPOOL_SANDBOX, or `auto`. Raises PrivateDirError for another word."""
    mode = environment.get("GPUPOOL_SANDBOX", "") or "auto"
    if mode not in SANDBOX_MODES:
        raise PrivateDirError(
            f"GPUPOOL_SANDBOX is {mode!r}; it must be one of {', '.join(SANDBOX_MODES)}"
        )
    return mode


def idle_timeout_s(environment: Mapping[str, str] = os.environ) -> int:
    """GPUPOOL_IDLE_TIMEOUT_S, or 60. Raises PrivateDirError for what is no number of seconds."""
    text = environment.get("GPUPOOL_IDLE_TIMEOUT_S", "")
    if not text:
        return _IDLE_TIMEOUT_S
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 86400):
        raise PrivateDirError(
            f"GPUPOOL_IDLE_TIMEOUT_S is {text!r}; it must be a number of seconds from 1 to 86400"
        )
    return int(text)
