"""The only place where the controller's objects are wired, and its life from start to last answer.

Order: configuration, database (waited for, then migrated), first token, licence, sweeper, HTTP.
SIGTERM and SIGINT: no new requests, those that run are answered, streams of events end.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from gpupool import __version__
from gpupool.controller.api.grpc.access import Access
from gpupool.controller.api.grpc.server import CannotListenError, NodeDoor, NodeServer
from gpupool.controller.api.grpc.servicer import Servicer, Timing
from gpupool.controller.api.limiter import Limiter
from gpupool.controller.api.rest.app import Options, make_app
from gpupool.controller.api.rest.context import Services
from gpupool.controller.api.rest.door import Door, Limits
from gpupool.controller.api.rest.metrics import Metrics
from gpupool.controller.api.rest.quick import Quick
from gpupool.controller.config import Config, ConfigError, load
from gpupool.controller.core import consistency
from gpupool.controller.core.errors import StoreError
from gpupool.controller.core.identity import new_id
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.token import Role, Token, digest, new_secret
from gpupool.controller.licence import LicenceFile
from gpupool.controller.store import migrate
from gpupool.controller.store.sql import Settings, SqlStore
from gpupool.controller.sweeper import Keep, Sweeper
from gpupool.wire import log as lines
from gpupool.wire.proto.node import NotBuiltError, node_api

log = logging.getLogger("gpupool.controller")
_DATABASE_WAIT_S = 60.0
_LEAVE_S = 10
_FAILURES_PER_S, _FAILURES = 1.0, 20


def now_ms() -> int:
    """Wall-clock time: for dates only, never for how long something took."""
    return time.time_ns() // 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m gpupool.controller`.

    Exit codes: 0 left; 1 could not start, or does not add up; 2 the configuration is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m gpupool.controller", description=__doc__)
    parser.add_argument("--config", type=Path, help="default: /etc/gpupool/controller.toml")
    parser.add_argument("--check", action="store_true", help="check the configuration and leave")
    parser.add_argument("--migrate", action="store_true", help="migrate the database and leave")
    parser.add_argument(
        "--verify", action="store_true", help="look whether everything adds up, and leave"
    )
    asked = parser.parse_args(arguments)
    try:
        config = load(asked.config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if asked.check:
        return 0
    lines.set_up("gpupool.controller", config.log_level, config.log_format, config.log_priorities)
    store = SqlStore(
        Settings(config.database_url, config.database_connections, config.database_timeout_s)
    )
    try:
        revision = _migrate(store)
        if asked.migrate:
            return 0
        if asked.verify:
            return verify(store)
        if config.bootstrap_token_file is not None:
            bootstrap(store, config.bootstrap_token_file)
    except (StoreError, OSError) as error:
        log.error("cannot start: %s", error)
        return 1
    log.info("database is at revision %s", revision)
    return serve(config, store)


def verify(store: SqlStore) -> int:
    """Prints what does not add up. Raises StoreError."""
    found = store.read(consistency.faults)
    for line in found or ["everything adds up"]:
        print(line)
    return 1 if found else 0


def _migrate(store: SqlStore) -> str:
    """Waits for a database that is not there yet: parts start in any order."""
    deadline_s = time.monotonic() + _DATABASE_WAIT_S
    pause_s = 0.2
    while True:
        try:
            return migrate.upgrade(store.engine)
        except StoreError as error:
            if time.monotonic() + pause_s > deadline_s:
                raise
            log.warning("%s; trying again", error)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 5.0)


def bootstrap(store: SqlStore, path: Path) -> None:
    """Writes the first admin token, while there is none at all.

    The file comes before the row: a token that nobody can read is worse than a file without one.
    Raises OSError, StoreError.
    """
    if store.read(lambda tables: tables.tokens.count()):
        return
    secret = new_secret()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secret + "\n")
    fresh.replace(path)

    def work(tables: Tables) -> bool:
        if tables.tokens.count():
            return False
        token = Token(
            new_id("token", tables.now_ms), "bootstrap", Role.ADMIN, created_ms=tables.now_ms
        )
        tables.tokens.add(token, digest(secret))
        return True

    if store.change(work):
        log.info("the first admin token is in %s", path)
    else:  # another replica was faster
        path.unlink(missing_ok=True)


def serve(config: Config, store: SqlStore) -> int:
    """Serves until a signal."""
    licence = LicenceFile(config.licence_file, config.licence_public_key)
    metrics = Metrics(lambda: store.retries)
    keep = Keep(config.keep_events_days, config.keep_audit_days, config.keep_answers_hours)
    sweeper = Sweeper(store, licence.current, keep, config.lease_node_s)
    services = Services(
        store,
        licence.current,
        __version__,
        lambda: server.should_exit,
        config.limits_event_followers,
    )
    app = make_app(services, metrics, Options(public_metrics=config.metrics_public))
    limits = Limits(
        Limiter(config.limits_requests_per_s, config.limits_burst, time.monotonic),
        Limiter(_FAILURES_PER_S, _FAILURES, time.monotonic),
    )
    inner = Quick(app, services)
    door = Door(inner, store, limits, metrics, now_ms=now_ms, public_metrics=config.metrics_public)
    server = uvicorn.Server(
        uvicorn.Config(
            door,
            host=config.host,
            port=config.port,
            log_config=None,  # its access log would be a second audit log, without the who
            access_log=False,
            lifespan="off",
            server_header=False,
            date_header=True,
            proxy_headers=False,  # an address that a client may write is no address
            ssl_certfile=config.tls_certificate or None,
            ssl_keyfile=config.tls_key or None,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_LEAVE_S,
            limit_concurrency=2000,
        )
    )
    # uvicorn ends at these signals and then sends itself the same again; what we were told to do is
    # done by then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        nodes = _nodes(config, store, licence)
    except NotBuiltError as error:
        log.error("cannot start: %s", error)
        return 1
    sweeper.start()
    try:
        if nodes is not None:
            nodes.start()
        log.info("serving on %s:%d", config.host, config.port)
        server.run()
    except CannotListenError as error:
        log.error("cannot start: %s", error)
    finally:
        if nodes is not None:
            nodes.stop()
        sweeper.stop()
        store.close()
        log.info("left")
    return 0 if server.started else 1


def _nodes(config: Config, store: SqlStore, licence: LicenceFile) -> NodeServer | None:
    """The side that nodes talk to; None: not here."""
    if not config.nodes_listen:
        log.info("no nodes are served here: nodes.listen is empty")
        return None
    door = NodeDoor(
        config.nodes_listen,
        Path(config.tls_certificate) if config.tls_certificate else None,
        Path(config.tls_key) if config.tls_key else None,
        Path(config.nodes_client_ca) if config.nodes_client_ca else None,
    )
    timing = Timing(beat_s=min(7.5, config.lease_node_s / 4))
    failures = Limiter(_FAILURES_PER_S, _FAILURES, time.monotonic)
    access = Access(store, now_ms, failures)
    return NodeServer(door, Servicer(store, licence.current, node_api(), access, timing))
