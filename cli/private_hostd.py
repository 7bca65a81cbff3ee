"""Joins this user's own hostd, starting it when there is none: exactly one, however many ask at the
same time.

Everything happens under `start.lock`, which an idle hostd also needs to leave; so who joins is
never left behind.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpupool
from gpupool.cli.admin import AdminError, UnreachableError, call
from gpupool.hostd import private
from gpupool.hostd.adapters.listener import Lock

_LOCK_TIMEOUT_S = 90.0  # 64 runs at once wait for the first to start hostd
_START_TIMEOUT_S = 60.0
_LEAVE_TIMEOUT_S = 10.0
_POLL_S = 0.02
_LOG_LIMIT_BYTES = 1 << 20


class StartError(RuntimeError):
    """No private hostd could be joined or started. The text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What a run needs to know of the hostd that it joined."""

    directory: Path
    endpoints: tuple[dict[str, Any], ...]

    def endpoint(self, transport: str) -> dict[str, str]:
        """Where to dial for a transport, the token file and the certificate's fingerprint (empty:
        none needed).
        """
        for one in self.endpoints:
            if transport in one["transports"]:
                return {name: str(one[name]) for name in ("endpoint", "token_file", "fingerprint")}
        raise StartError(
            f"this user's hostd has no endpoint for transport {transport}; see "
            f"{self.directory / 'hostd.log'}"
        )


def join() -> Joined:
    """Joins, starting a hostd if needed.

    It then stays while this process lives. Raises StartError.
    """
    try:
        folder = private.directory()
        private.prepare(folder)
        private.gpu_choice()
        private.idle_timeout_s()
        private.sandbox_mode()
        lock = Lock(folder / "start.lock")
    except (private.PrivateDirError, OSError) as error:
        raise StartError(str(error)) from error
    try:
        _wait_for(lock, _LOCK_TIMEOUT_S, "another `gpupool run` is still starting hostd")
        return _join_locked(folder)
    finally:
        lock.release()


def _join_locked(folder: Path) -> Joined:
    settings = private.settings(gpupool.__version__)
    admin_socket = folder / "admin.sock"
    for _ in range(3):
        try:
            answer = call(admin_socket, "join", settings=settings)
        except UnreachableError:
            _start(folder)
            continue
        except AdminError as error:
            raise StartError(f"this user's hostd: {error}") from error
        if answer["joined"]:
            return Joined(folder, tuple(answer["endpoints"]))
        if answer["busy"]:
            raise StartError(
                f"this user's hostd (pid {answer['pid']}) is in use with other settings: "
                f"it has {answer['settings']}, asked was {settings}; "
                "wait until it is free, or set GPUPOOL_RUNTIME_DIR to another folder"
            )
        call(admin_socket, "stop")
        _wait_until_gone(folder)
    raise StartError(f"hostd starts and leaves again; see {folder / 'hostd.log'}")


def _wait_for(lock: Lock, timeout_s: float, why: str) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not lock.try_take():
        if time.monotonic() > deadline_s:
            raise StartError(f"{why} after {timeout_s:g} s (lock {lock.path})")
        time.sleep(_POLL_S)


def _wait_until_gone(folder: Path) -> None:
    """Waits until no hostd holds the folder's lock."""
    lock = Lock(folder / "lock")
    try:
        _wait_for(
            lock,
            _LEAVE_TIMEOUT_S,
            f"a hostd holds {folder} but does not answer; see {folder / 'hostd.log'}: still so",
        )
    finally:
        lock.release()


def _start(folder: Path) -> None:
    """Starts hostd and waits until it serves.

    It keeps none of our descriptors, nor our terminal.
    """
    _wait_until_gone(folder)
    readable, writable = os.pipe()
    try:
        with _open_log(folder / "hostd.log") as log:
            child = subprocess.Popen(  # noqa: S603 (our own module)
                [
                    sys.executable,
                    "-m",
                    "gpupool.cli",
                    "hostd",
                    "--private",
                    "--ready-fd",
                    str(writable),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writable,),
                env=_environment(folder),
                cwd="/",
                start_new_session=True,
            )
    except OSError as error:
        os.close(readable)
        raise StartError(f"cannot start hostd: {error}") from error
    finally:
        os.close(writable)
    try:
        word = _read_word(readable)
    finally:
        os.close(readable)
    if word == "ready":
        child.returncode = (
            0  # it is on its own now: nobody waits for it, and Popen must not warn about that
        )
        return
    raise StartError(
        f"hostd did not start: {word or 'it ended without a word'}; see {folder / 'hostd.log'}"
    )


def _read_word(readable: int) -> str:
    """What hostd says of its start; empty when it died first."""
    received = b""
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while not received.endswith(b"\n"):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not select.select([readable], [], [], left_s)[0]:
            return f"no sign of life within {_START_TIMEOUT_S:g} s"
        piece = os.read(readable, 4096)
        if not piece:
            break
        received += piece
    return received.decode("utf-8", "replace").strip()


def _open_log(path: Path) -> Any:
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.old"))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    return os.fdopen(fd, "ab")


def _environment(folder: Path) -> dict[str, str]:
    """hostd's environment: ours without what changes which libraries are loaded."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "HOME", "LANG", "USER", "XDG_RUNTIME_DIR")
    }
    kept |= {name: value for name, value in os.environ.items() if name.startswith("GPUPOOL_")}
    kept["GPUPOOL_RUNTIME_DIR"] = str(folder)
    # The package may run from a checkout that only our own sys.path knows.
    kept["PYTHONPATH"] = str(Path(gpupool.__file__).absolute().parent.parent)
    return kept
