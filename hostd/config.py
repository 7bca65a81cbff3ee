"""hostd's configuration: TOML, read once, every key checked against one table.

The table (`KEYS`) is the documentation's source too: tests/hostd/test_config.py holds
docs/configuration.md to it. An unknown key, a wrong type or an impossible value is an error that
names the key, what was given and what is allowed. Nothing is ignored.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpupool.hostd.core.admission import Limits
from gpupool.hostd.core.sandbox import SandboxSettings
from gpupool.hostd.endpoint import Endpoint
from gpupool.hostd.log import LEVELS
from gpupool.wire.hello import WINDOW_BASE_STEP_BYTES, WINDOW_MIN_BYTES, TransportKind

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

DEFAULT_PATH = Path("/etc/gpupool/hostd.toml")
SYSTEM_DIR = Path("/run/gpupool")
SYSTEM_SOCKET = SYSTEM_DIR / "hostd.sock"
SYSTEM_ADMIN_SOCKET = SYSTEM_DIR / "admin.sock"


class ConfigError(ValueError):
    """The configuration cannot be used. One line for each thing that is wrong."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key: `section.name` (no section: top level; `endpoint.` for each [[endpoint]])."""

    name: str
    kind: type
    default: object
    meaning: str
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """What may be written, in words."""
        if self.choices:
            return "one of " + ", ".join(f'"{choice}"' for choice in self.choices)
        words = {bool: "true or false", str: "a string", list: "a list of strings"}
        return words.get(self.kind, f"a whole number from {self.low} to {self.high}")

    @property
    def default_text(self) -> str:
        """The default as TOML writes it."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return f'"{self.default}"' if isinstance(self.default, str) else str(self.default)

    def check(self, value: object) -> str | None:
        """What is wrong with a value, or None."""
        right_type = type(value) is self.kind
        if right_type and isinstance(value, list):
            right_type = all(isinstance(item, str) for item in value)
        in_range = not isinstance(value, int) or self.kind is bool or self.low <= value <= self.high
        if right_type and in_range and (not self.choices or value in self.choices):
            return None
        return f"{self.name}: given {value!r}, allowed is {self.allowed}"


_MIN_WINDOW_MIB = WINDOW_MIN_BYTES >> 20
_MAX_WINDOW_MIB = WINDOW_BASE_STEP_BYTES >> 20

KEYS: tuple[Key, ...] = (
    Key(
        "gpu",
        str,
        "auto",
        "which GPUs to give out; auto: NVIDIA cards if there are any, else the software GPU",
        choices=("auto", "nvidia", "software"),
    ),
    Key(
        "libcuda",
        str,
        "",
        "absolute path of NVIDIA's libcuda.so.1; empty: look where drivers install it",
    ),
    Key("devices", list, [], "UUIDs of the GPUs to give out (`gpupool devices`); empty: all"),
    Key(
        "state_dir",
        str,
        "/run/gpupool/state",
        "where sessions are written down; a folder that a reboot empties",
    ),
    Key(
        "admin_socket",
        str,
        str(SYSTEM_ADMIN_SOCKET),
        "socket of `gpupool status`; only hostd's user may open it",
    ),
    Key(
        "idle_timeout_s",
        int,
        0,
        "leave after so many seconds without sessions; 0: never",
        low=0,
        high=86400,
    ),
    Key("log.level", str, "info", "what to log", choices=tuple(LEVELS)),
    Key("log.format", str, "text", "text is key=value", choices=("text", "json")),
    Key(
        "log.priorities",
        str,
        "auto",
        "begin lines with <N> for journald; auto: when stderr is the journal",
        choices=("auto", "yes", "no"),
    ),
    Key("limits.max_sessions", int, 256, "client processes at one time", low=1, high=65536),
    Key(
        "limits.window_mib",
        int,
        16384,
        "shared memory of one session, for pinned memory; used only as it is touched",
        low=_MIN_WINDOW_MIB,
        high=_MAX_WINDOW_MIB,
    ),
    Key(
        "limits.hello_timeout_s",
        int,
        5,
        "how long a new connection may take to say what it wants",
        low=1,
        high=600,
    ),
    Key(
        "limits.default_compute_percent",
        int,
        100,
        "compute share of clients that ask for none",
        low=1,
        high=100,
    ),
    Key(
        "limits.default_memory_mib",
        int,
        0,
        "memory quota of clients that ask for none; 0: the whole GPU",
        low=0,
        high=1 << 24,
    ),
    Key(
        "limits.end_grace_s",
        int,
        10,
        "how long a worker may outlive its client before hostd kills it",
        low=1,
        high=3600,
    ),
    Key(
        "sandbox.mode",
        str,
        "auto",
        "how workers are locked in; auto: with what this machine has, required: hostd does not "
        "start where something is missing",
        choices=("auto", "required", "off"),
    ),
    Key(
        "sandbox.seccomp",
        str,
        "on",
        "filter of system calls; on: a refused one ends its session, report: it fails and is "
        "logged",
        choices=("on", "report", "off"),
    ),
    Key("sandbox.landlock", bool, True, "let workers open only what a driver opens"),
    Key("sandbox.cgroup", bool, True, "give each session a cgroup (version 2) with limits"),
    Key(
        "sandbox.worker_user",
        str,
        "",
        "user that workers run as when hostd is root; empty: gpupool-worker if there is such a "
        "user, else a user number of its own for each tenant",
    ),
    Key(
        "sandbox.worker_uid_base",
        int,
        1_900_000_000,
        "first of 16777216 user numbers for tenants; 0: workers stay root",
        low=0,
        high=(1 << 31) - (1 << 24),
    ),
    Key(
        "sandbox.compile_cache",
        str,
        "auto",
        "keep what the driver compiles on disk; auto: only where hostd serves just its own user",
        choices=("auto", "yes", "no"),
    ),
    Key("sandbox.threads", int, 1024, "threads of one worker", low=64, high=1 << 20),
    Key(
        "sandbox.memory_mib",
        int,
        0,
        "host memory of one session's cgroup; 0: limits.window_mib and 8192 more",
        low=0,
        high=1 << 24,
    ),
    Key("endpoint.listen", str, f"unix:{SYSTEM_SOCKET}", "unix:/path or tcp://host:port"),
    Key("endpoint.mode", str, "0666", "permissions of a unix socket, in octal"),
    Key(
        "endpoint.transports",
        list,
        [],
        'what clients may use here; empty: ["shm"] on unix, ["tcp"] on tcp',
    ),
    Key(
        "endpoint.token_file",
        str,
        "",
        "file with a token that clients must send; needed on tcp; made if missing",
    ),
    Key("endpoint.insecure", bool, False, "must be true for tcp: its bytes are not encrypted"),
)
_BY_NAME = {key.name: key for key in KEYS}


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """One [[endpoint]]."""

    endpoint: Endpoint
    mode: int = 0o666
    transports: frozenset[TransportKind] = frozenset({TransportKind.SHM})
    token_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """A checked configuration."""

    gpu: str
    libcuda: str
    devices: tuple[str, ...]
    state_dir: Path
    admin_socket: Path
    idle_timeout_s: int
    log_level: str
    log_format: str
    log_priorities: str
    hello_timeout_s: int
    limits: Limits
    sandbox: SandboxSettings
    endpoints: tuple[EndpointConfig, ...]


def read(text: str) -> dict[str, Any]:
    """TOML as a dictionary. Raises ValueError."""
    document: dict[str, Any] = tomllib.loads(text)
    return document


def load(path: Path | None) -> Config:
    """Reads a file, or the default one if it exists, else takes every default.

    Raises ConfigError.
    """
    if path is None and not DEFAULT_PATH.exists():
        return parse({})
    path = path or DEFAULT_PATH
    try:
        document = read(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise ConfigError(f"{path} is no TOML: {error}") from error
    try:
        return parse(document)
    except ConfigError as error:
        raise ConfigError(
            "\n".join(f"{path}: {line}" for line in str(error).splitlines())
        ) from error


def parse(document: Mapping[str, Any]) -> Config:
    """Checks a TOML document. Raises ConfigError that lists everything wrong at once."""
    problems: list[str] = []
    values = _flatten(document, problems)
    top = {
        key.name: _take(key, values, key.name, problems)
        for key in KEYS
        if not key.name.startswith("endpoint.")
    }
    problems += [f"{name}: no such key; known are {_siblings(name)}" for name in values]
    endpoints = _endpoints(document.get("endpoint", [{}]), problems)
    for name in ("state_dir", "admin_socket", "libcuda"):
        if top[name] and not str(top[name]).startswith("/"):
            problems.append(f"{name}: given {top[name]!r}, allowed is an absolute path")
    _check_socket(f"unix:{top['admin_socket']}", "admin_socket", problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return Config(
        gpu=top["gpu"],
        libcuda=top["libcuda"],
        devices=tuple(top["devices"]),
        state_dir=Path(top["state_dir"]),
        admin_socket=Path(top["admin_socket"]),
        idle_timeout_s=top["idle_timeout_s"],
        log_level=top["log.level"],
        log_format=top["log.format"],
        log_priorities=top["log.priorities"],
        hello_timeout_s=top["limits.hello_timeout_s"],
        limits=Limits(
            max_sessions=top["limits.max_sessions"],
            window_mib=top["limits.window_mib"],
            default_compute_percent=top["limits.default_compute_percent"],
            default_memory_mib=top["limits.default_memory_mib"],
            end_grace_s=top["limits.end_grace_s"],
        ),
        sandbox=SandboxSettings(
            **{
                field.name: top[f"sandbox.{field.name}"]
                for field in dataclasses.fields(SandboxSettings)
            }
        ),
        endpoints=endpoints,
    )


def private(
    base: Config, private_dir: Path, gpu: str, idle_timeout_s: int, sandbox: str = "auto"
) -> Config:
    """The configuration of a hostd that one user's `gpupool run` starts: everything under one
    folder of that user.
    """
    token_file = private_dir / "token"
    return replace(
        base,
        gpu=gpu,
        state_dir=private_dir,
        admin_socket=private_dir / "admin.sock",
        idle_timeout_s=idle_timeout_s,
        sandbox=replace(base.sandbox, mode=sandbox),
        endpoints=(
            EndpointConfig(Endpoint(path=str(private_dir / "hostd.sock")), mode=0o600),
            EndpointConfig(
                Endpoint(host="127.0.0.1", port=0),
                transports=frozenset({TransportKind.TCP}),
                token_file=token_file,
            ),
        ),
    )


def _flatten(document: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """{"log": {"level": ..}} -> {"log.level": ..}; [[endpoint]] is left to _endpoints."""
    sections = {key.name.partition(".")[0] for key in KEYS if "." in key.name}
    values: dict[str, Any] = {}
    for name, value in document.items():
        if name == "endpoint":
            continue
        if name in sections and not isinstance(value, dict):
            problems.append(f"{name}: given {value!r}, allowed is a section [{name}]")
        elif isinstance(value, dict):
            values |= {f"{name}.{inner}": content for inner, content in value.items()}
        else:
            values[name] = value
    return values


def _take(key: Key, values: dict[str, Any], shown: str, problems: list[str]) -> Any:
    value = values.pop(shown, key.default)
    problem = key.check(value)
    if problem is not None:
        problems.append(problem.replace(key.name, shown, 1))
        return key.default
    return value


def _siblings(name: str) -> str:
    section = name.rpartition(".")[0]
    known = [key.name for key in KEYS if key.name.rpartition(".")[0] == section]
    return ", ".join(known or sorted(key.name for key in KEYS))


def _endpoints(given: Any, problems: list[str]) -> tuple[EndpointConfig, ...]:
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        problems.append(f"endpoint: given {given!r}, allowed is one or more sections [[endpoint]]")
        return ()
    if not given:
        problems.append(
            "endpoint: given an empty list, allowed is one or more sections [[endpoint]]"
        )
    found = [
        _endpoint(f"endpoint[{number}]", dict(item), problems) for number, item in enumerate(given)
    ]
    addresses = [item.endpoint for item in found if item is not None]
    problems += [
        f"endpoint: {address} is listed twice"
        for address in {a for a in addresses if addresses.count(a) > 1}
    ]
    return tuple(item for item in found if item is not None)


def _endpoint(where: str, item: dict[str, Any], problems: list[str]) -> EndpointConfig | None:
    values = {f"{where}.{name}": value for name, value in item.items()}
    taken = {
        name: _take(_BY_NAME[f"endpoint.{name}"], values, f"{where}.{name}", problems)
        for name in ("listen", "mode", "transports", "token_file", "insecure")
    }
    known = ", ".join(taken)
    problems += [f"{name}: no such key; an endpoint has {known}" for name in values]
    endpoint = _check_socket(taken["listen"], f"{where}.listen", problems)
    if endpoint is None:
        return None
    possible = ("shm", "tcp") if endpoint.is_unix else ("tcp",)
    wanted = taken["transports"] or [possible[0]]
    for word in wanted:
        if word not in possible:
            problems.append(
                f"{where}.transports: given {word!r}, allowed at {endpoint} is "
                f"{' or '.join(possible)}"
            )
    if not endpoint.is_unix and not taken["insecure"]:
        problems.append(
            f"{where}.insecure: given False, allowed for tcp is true: TLS is not available yet, "
            "so bytes travel in clear"
        )
    if not endpoint.is_unix and not taken["token_file"]:
        problems.append(
            f"{where}.token_file: given nothing, needed for tcp: an absolute path (the file is "
            "made if missing)"
        )
    if taken["token_file"] and not taken["token_file"].startswith("/"):
        problems.append(
            f"{where}.token_file: given {taken['token_file']!r}, allowed is an absolute path"
        )
    return EndpointConfig(
        endpoint=endpoint,
        mode=_mode(where, taken["mode"], problems),
        transports=frozenset(TransportKind[word.upper()] for word in wanted if word in possible),
        token_file=Path(taken["token_file"]) if taken["token_file"] else None,
    )


def _mode(where: str, text: str, problems: list[str]) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        problems.append(
            f'{where}.mode: given {text!r}, allowed is an octal number from "0000" to "0777"'
        )
        return 0
    return mode


def _check_socket(text: str, where: str, problems: list[str]) -> Endpoint | None:
    try:
        return Endpoint.parse(text)
    except ValueError as error:
        problems.append(f"{where}: {error}")
        return None
