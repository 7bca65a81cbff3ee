"""A PostgreSQL of one's own, for a test or a bench: in a temporary folder, on a unix socket."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text

_START_S = 60


class Cluster:
    """A running server. Raises RuntimeError where it cannot start."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self.folder = folder
        self._user = None if os.geteuid() else _other_user()
        if self._user is not None:  # initdb refuses root
            shutil.chown(folder, self._user)
        self._data = folder / "data"
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8")
        settings = [
            "listen_addresses = ''",
            f"unix_socket_directories = '{folder}'",
            "max_connections = 200",
        ]
        if not durable:
            settings += ["fsync = off", "synchronous_commit = off", "full_page_writes = off"]
        with (self._data / "postgresql.conf").open("a") as file:
            file.write("\n".join(settings) + "\n")

    def start(self) -> None:
        """Starts it and waits until it answers."""
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self._data), "-l", log, "-w", "-t", str(_START_S), "start")

    @property
    def pid(self) -> int:
        """Of the first of its processes."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def stop(self, mode: str = "fast") -> None:
        """Ends it; `immediate` is a crash."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", mode, "stop")

    def url(self, database: str = "postgres") -> str:
        """For SQLAlchemy."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    def create(self, name: str, template: str = "template0") -> str:
        """A new database; its URL."""
        engine = create_engine(self.url(), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'))
        engine.dispose()
        return self.url(name)

    def _run(self, *command: str) -> None:
        done = subprocess.run(  # noqa: S603  names from below
            command,
            user=self._user,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            # Not a pipe: the server would keep it open.
            stdout=(self.folder / "out").open("w"),
            stderr=subprocess.STDOUT,
            timeout=2 * _START_S,
            check=False,
        )
        if done.returncode != 0:
            told = (self.folder / "out").read_text()[-1000:]
            raise RuntimeError(f"{command[0]} failed: {told}")


def missing() -> str:
    """What is missing to start one, or nothing."""
    absent = [name for name in ("initdb", "pg_ctl", "postgres") if shutil.which(name) is None]
    if absent:
        return f"PostgreSQL is not installed ({', '.join(absent)})"
    if os.geteuid() == 0 and _other_user() is None:
        return "PostgreSQL does not run as root, and there is no user postgres or nobody"
    return ""


@contextmanager
def cluster(*, durable: bool = False) -> Iterator[Cluster]:
    """One that is gone afterwards. `durable`: commits wait for the disk, as in earnest."""
    # Not below the user's folder: a socket's path is short, and the other user must get there.
    with tempfile.TemporaryDirectory(prefix="gpupool-pg-") as name:
        one = Cluster(Path(name), durable=durable)
        one.start()
        try:
            yield one
        finally:
            one.stop("immediate")


def _other_user() -> str | None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)
