"""SessionStore port: one JSON file a session under the state folder.

Files are replaced by rename, so a reader sees a whole record or none. A record that cannot be read
is reported and moved aside, never guessed at. The folder lives on a tmpfs: workers do not survive a
reboot and neither do records. Beside each record is the session's usage page, which the worker
writes and hostd reads, also a hostd that was started after it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from pathlib import Path

from gpupool.hostd.adapters import usage_page
from gpupool.hostd.core.ports import Counters, DeviceUsage, PortError
from gpupool.hostd.core.session import Session
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")


class SessionFiles:
    """Implements `ports.SessionStore`."""

    def __init__(self, state_dir: Path) -> None:
        self._sessions = state_dir / "sessions"
        self._last_id = state_dir / "last-session-id"
        self._sessions.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self) -> list[Session]:
        """Every readable record, by id."""
        sessions = []
        for path in self._sessions.glob("*.json"):
            try:
                session = Session.from_dict(json.loads(path.read_text(encoding="utf-8")))
                if path.name != f"{session.id}.json":
                    raise ValueError(f"holds session {session.id}")
            except (OSError, ValueError) as error:
                log.error(
                    "session record unreadable, moved aside",
                    extra=fields({"path": str(path), "error": str(error)}),
                )
                with contextlib.suppress(OSError):
                    path.rename(path.with_suffix(".unreadable"))
                continue
            sessions.append(session)
        return sorted(sessions, key=lambda session: session.id)

    def save(self, session: Session) -> None:
        """Writes or replaces a record. Raises PortError."""
        self._write(self._sessions / f"{session.id}.json", json.dumps(session.as_dict()))

    def remove(self, session_id: int) -> None:
        """Deletes a record; logs when the file system refuses."""
        try:
            (self._sessions / f"{session_id}.json").unlink(missing_ok=True)
            (self._sessions / f"{session_id}.usage").unlink(missing_ok=True)
        except OSError as error:
            log.error(
                "session record not removed",
                extra=fields({"session": session_id, "error": str(error)}),
            )

    def create_usage(self, session_id: int) -> int:
        """The page that the worker writes. Raises PortError."""
        path = self._sessions / f"{session_id}.usage"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise PortError(f"cannot create {path}: {error.strerror}") from error
        try:
            # Not a hole: a worker that stores where the tmpfs has no room gets SIGBUS.
            os.posix_fallocate(fd, 0, usage_page.BYTES)
        except OSError as error:
            os.close(fd)
            raise PortError(f"no room for {path}: {error.strerror}") from error
        return fd

    def close_usage(self, fd: int) -> None:
        """The worker has its own by now."""
        os.close(fd)

    def usage(self, session_id: int) -> tuple[DeviceUsage, ...]:
        """What the worker has written; nothing when it has not begun or the page is gone."""
        return usage_page.decode(self._page(session_id), time.monotonic_ns())

    def counters(self, session_id: int) -> Counters:
        """From the same page."""
        return usage_page.decode_counters(self._page(session_id))

    def _page(self, session_id: int) -> bytes:
        try:
            return (self._sessions / f"{session_id}.usage").read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            log.error(
                "usage page unreadable", extra=fields({"session": session_id, "error": str(error)})
            )
            return b""

    def next_id(self) -> int:
        """One more than ever before. Raises PortError."""
        try:
            last = int(self._last_id.read_text(encoding="ascii"))
        except FileNotFoundError:
            last = max((session.id for session in self.load()), default=0)
        except (OSError, ValueError) as error:
            raise PortError(
                f"{self._last_id} cannot be read ({error}); remove it once no session runs"
            ) from error
        self._write(self._last_id, str(last + 1))
        return last + 1

    def _write(self, path: Path, text: str) -> None:
        fresh = path.with_suffix(".new")
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
            fresh.replace(path)
        except OSError as error:
            raise PortError(f"cannot write {path}: {error.strerror}") from error
