"""The controller's configuration: TOML, read once, every key checked against one table.

An unknown key, a wrong type or an impossible value is an error that names the key, what was given
and what is allowed. Nothing is ignored.
"""

from __future__ import annotations

import ipaddress
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from gpupool.controller.config_keys import KEYS

if sys.version_info >= (3, 11):
    import tomllib
else:
    # Installed where Python needs it (pyproject.toml).
    import tomli as tomllib

DEFAULT_PATH = Path("/etc/gpupool/controller.toml")
_PATHS = ("tls.certificate", "tls.key", "nodes.client_ca", "database.password_file", "licence.file")


class ConfigError(ValueError):
    """The configuration cannot be used. One line for each thing that is wrong."""


@dataclass(frozen=True, slots=True)
class Config:
    """A checked configuration. Names are those of the keys, with _ for the dot."""

    host: str
    port: int
    tls_certificate: str
    tls_key: str
    nodes_listen: str  # empty: no nodes
    nodes_client_ca: str
    database_url: str = field(repr=False)  # with the password in it
    database_connections: int
    database_timeout_s: int
    bootstrap_token_file: Path | None
    licence_file: Path | None
    licence_public_key: str
    limits_requests_per_s: int
    limits_burst: int
    limits_event_followers: int
    lease_node_s: int
    keep_events_days: int
    keep_audit_days: int
    keep_answers_hours: int
    metrics_public: bool
    log_level: str
    log_format: str
    log_priorities: str


def load(path: Path | None) -> Config:
    """Reads a file, or the default one if it exists, else takes every default.

    Raises ConfigError.
    """
    if path is None and not DEFAULT_PATH.exists():
        return parse({})
    path = path or DEFAULT_PATH
    try:
        return parse(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ConfigError as error:
        lines = str(error).splitlines()
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise ConfigError(f"{path} is no TOML: {error}") from error


def parse(document: Mapping[str, Any]) -> Config:
    """Checks a TOML document. Raises ConfigError that lists everything wrong at once."""
    problems: list[str] = []
    values = _flatten(document)
    top: dict[str, Any] = {}
    for key in KEYS:
        value = values.pop(key.name, key.default)
        problem = key.check(value)
        if problem is not None:
            problems.append(problem)
        top[key.name] = key.default if problem else value
    known = ", ".join(key.name for key in KEYS)
    problems += [f"{name}: no such key; known are {known}" for name in values]
    problems += [
        f"{name}: given {top[name]!r}, allowed is an absolute path"
        for name in (*_PATHS, "bootstrap.token_file")
        if top[name] and not top[name].startswith("/")
    ]
    host, port = _listen("listen", top, problems)
    if top["nodes.listen"]:
        _listen("nodes.listen", top, problems)
    if top["nodes.client_ca"] and not top["tls.certificate"]:
        problems.append("nodes.client_ca: given without tls.certificate; certificates need TLS")
    url = _database(top, problems)
    _check_key(top["licence.public_key"], problems)
    if problems:
        raise ConfigError("\n".join(problems))
    token_file, licence_file = top["bootstrap.token_file"], top["licence.file"]
    taken = ("listen", "insecure", "database.url", "database.password_file")
    rest = {
        name.replace(".", "_"): value
        for name, value in top.items()
        if name not in (*taken, "bootstrap.token_file", "licence.file")
    }
    return Config(
        host=host,
        port=port,
        database_url=url,
        bootstrap_token_file=Path(token_file) if token_file else None,
        licence_file=Path(licence_file) if licence_file else None,
        **rest,
    )


def _flatten(document: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            values |= {f"{name}.{inner}": content for inner, content in value.items()}
        else:
            values[name] = value
    return values


def _listen(name: str, top: Mapping[str, Any], problems: list[str]) -> tuple[str, int]:
    text = top[name]
    host, _, digits = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
        port = int(digits)
        if not 0 <= port <= 65535:
            raise ValueError
    except ValueError:
        problems.append(
            f"{name}: given {text!r}, allowed is address:port, like 127.0.0.1:9180 or [::]:9180"
        )
        return "", 0
    secure = bool(top["tls.certificate"])
    if secure != bool(top["tls.key"]):
        problems.append("tls.certificate and tls.key: given one, needed are both or neither")
    if not (loopback or secure or top["insecure"]):
        problems.append(
            f"{name}: given {text!r} without TLS, where tokens would travel in clear. Give "
            "tls.certificate and tls.key, or listen on 127.0.0.1, or write insecure = true"
        )
    return host, port


def _database(top: Mapping[str, Any], problems: list[str]) -> str:
    try:
        url = make_url(top["database.url"])
        backend = url.get_backend_name()
    except ArgumentError:
        url, backend = None, ""
    wanted = "sqlite:////ABSOLUTE/PATH or postgresql://USER@HOST:PORT/NAME"
    if url is None or backend not in ("sqlite", "postgresql"):
        problems.append(f"database.url: allowed is {wanted}")
        return ""
    if backend == "sqlite" and not (url.database or "").startswith("/"):
        problems.append(f"database.url: allowed is {wanted}; a database in memory is lost")
    if url.password is not None:
        problems.append("database.url has a password; write it to database.password_file")
    password_file = top["database.password_file"]
    if password_file.startswith("/"):
        url = url.set(password=_secret(Path(password_file), problems))
    return url.render_as_string(hide_password=False)


def _secret(path: Path, problems: list[str]) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"database.password_file: {path}: {error}")
        return ""
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        problems.append(
            f"database.password_file: {path} can be used by others (mode "
            f"{stat.S_IMODE(mode):04o}): chmod 600 {path}"
        )
    return text


def _check_key(text: str, problems: list[str]) -> None:
    try:
        good = text == "" or len(bytes.fromhex(text)) == 32
    except ValueError:
        good = False
    if not good:
        problems.append("licence.public_key: allowed are 64 hexadecimal digits")
