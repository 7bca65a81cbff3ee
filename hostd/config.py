"""hostd's configuration: TOML, read once, every key checked against one table.

The table (`KEYS`) is the documentation's source too: tests/hostd/test_config.py holds
docs/configuration.md to it. An unknown key, a wrong type or an impossible value is an error that
names the key, what was given and what is allowed. Nothing is ignored.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpupool.hostd.config_controller import ControllerConfig, controller_config
from gpupool.hostd.config_keys import KEYS, SYSTEM_ADMIN_SOCKET, SYSTEM_DIR, SYSTEM_SOCKET
from gpupool.hostd.config_vm import VmConfig, vm_config
from gpupool.hostd.core.admission import Caps, Limits
from gpupool.hostd.core.ahead import AheadSettings
from gpupool.hostd.core.pool import NativeKind
from gpupool.hostd.core.pools import PoolSettings
from gpupool.hostd.core.sandbox import SandboxSettings
from gpupool.hostd.endpoint import Endpoint
from gpupool.wire.hello import TransportKind
from gpupool.wire.settings import Key

if sys.version_info >= (3, 11):
    import tomllib
else:
    # Installed where Python needs it (pyproject.toml).
    import tomli as tomllib

OWN_CERTIFICATE, OWN_KEY = "tls-certificate.pem", "tls-key.pem"
DEFAULT_PATH = Path("/etc/gpupool/hostd.toml")


class ConfigError(ValueError):
    """The configuration cannot be used. One line for each thing that is wrong."""


__all__ = ["KEYS", "SYSTEM_ADMIN_SOCKET", "SYSTEM_DIR", "SYSTEM_SOCKET", "Config", "Key"]

_BY_NAME = {key.name: key for key in KEYS}


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """One [[endpoint]]."""

    endpoint: Endpoint
    mode: int = 0o666
    transports: frozenset[TransportKind] = frozenset({TransportKind.SHM})
    token_file: Path | None = None
    scrub: bool = True
    tenant: str = ""
    certificate: Path | None = None  # of a tls endpoint, always
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """A checked configuration."""

    gpu: str
    libcuda: str
    devices: tuple[str, ...]
    state_dir: Path
    vgpu_dir: Path
    admin_socket: Path
    idle_timeout_s: int
    log_level: str
    log_format: str
    log_priorities: str
    hello_timeout_s: int
    limits: Limits
    sandbox: SandboxSettings
    ahead: AheadSettings
    endpoints: tuple[EndpointConfig, ...]
    pool: PoolSettings
    cdi_dir: Path
    metrics: Endpoint | None  # where Prometheus may ask
    controller: ControllerConfig | None = None
    vm: VmConfig | None = None  # None: no virtual machines come here


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
        if not key.name.startswith(("endpoint.", "vm.allow."))
    }
    rights = values.pop("vm.allow", [])
    problems += [f"{name}: no such key; known are {_siblings(name)}" for name in values]
    endpoints = _endpoints(document.get("endpoint", [{}]), problems)
    paths = (
        "state_dir",
        "vgpu_dir",
        "admin_socket",
        "libcuda",
        "sandbox.cache_dir",
        "pool.cdi_dir",
    )
    for name in paths:
        if top[name] and not str(top[name]).startswith("/"):
            problems.append(f"{name}: given {top[name]!r}, allowed is an absolute path")
    _check_socket(f"unix:{top['admin_socket']}", "admin_socket", problems)
    metrics = _metrics(top["metrics.listen"], problems)
    controller = controller_config(top, endpoints, problems)
    vm = vm_config(top, rights, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return Config(
        gpu=top["gpu"],
        libcuda=top["libcuda"],
        devices=tuple(top["devices"]),
        state_dir=Path(top["state_dir"]),
        vgpu_dir=Path(top["vgpu_dir"]),
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
            connections=top["limits.connections"],
            queue_s=top["limits.queue_s"],
            caps=Caps(
                pinned_mib=top["limits.pinned_mib"] or top["limits.window_mib"],
                image_mib=top["limits.image_mib"],
                handles=top["limits.handles"],
                streams=top["limits.streams"],
                launch_threads=top["limits.launch_threads"],
                zero_copy=top["limits.zero_copy"],
                opengl=top["limits.generated_opengl"],
            ),
        ),
        sandbox=SandboxSettings(
            **{
                field.name: top[f"sandbox.{field.name}"]
                for field in dataclasses.fields(SandboxSettings)
            }
        ),
        ahead=AheadSettings(
            **{
                field.name: top[f"ahead.{field.name}"]
                for field in dataclasses.fields(AheadSettings)
            }
        ),
        pool=PoolSettings(
            default=top["pool.default"],
            native=tuple(top["pool.native"]),
            native_kind=NativeKind(top["pool.native_kind"]),
            end_grace_s=top["limits.end_grace_s"],
            scrub=top["pool.scrub"],
        ),
        cdi_dir=Path(top["pool.cdi_dir"]),
        endpoints=endpoints,
        metrics=metrics,
        controller=controller,
        vm=vm,
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
        vgpu_dir=private_dir / "named",
        admin_socket=private_dir / "admin.sock",
        idle_timeout_s=idle_timeout_s,
        sandbox=replace(base.sandbox, mode=sandbox),
        pool=replace(base.pool, private=True),
        metrics=None,
        controller=None,
        vm=None,
        endpoints=(
            EndpointConfig(Endpoint(path=str(private_dir / "hostd.sock")), mode=0o600),
            EndpointConfig(
                Endpoint(host="127.0.0.1", port=0),
                transports=frozenset({TransportKind.TCP}),
                token_file=token_file,
            ),
            *_private_tls(private_dir, token_file),
        ),
    )


def _private_tls(private_dir: Path, token_file: Path) -> tuple[EndpointConfig, ...]:
    """For `gpupool run --transport tls`, where the command that makes certificates is there."""
    if shutil.which("openssl") is None:
        return ()
    return (
        EndpointConfig(
            Endpoint(host="127.0.0.1", port=0, tls=True),
            transports=frozenset({TransportKind.TLS}),
            token_file=token_file,
            certificate=private_dir / OWN_CERTIFICATE,
            key=private_dir / OWN_KEY,
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
        for name in (
            *("listen", "mode", "transports", "token_file", "scrub", "tenant", "insecure"),
            *("certificate", "key"),
        )
    }
    known = ", ".join(taken)
    problems += [f"{name}: no such key; an endpoint has {known}" for name in values]
    endpoint = _check_socket(taken["listen"], f"{where}.listen", problems)
    if endpoint is None:
        return None
    possible = endpoint.transports
    on_tcp, on_tls = possible == ("tcp",), possible == ("tls",)
    wanted = taken["transports"] or [possible[0]]
    for word in wanted:
        if word not in possible:
            problems.append(
                f"{where}.transports: given {word!r}, allowed at {endpoint} is "
                f"{' or '.join(possible)}"
            )
    if on_tcp and not taken["insecure"]:
        problems.append(
            f"{where}.insecure: given False, allowed for tcp is true: its bytes travel in clear; "
            "listen at tls:// instead, or write insecure = true"
        )
    if (on_tcp or on_tls) and not taken["token_file"]:
        problems.append(
            f"{where}.token_file: given nothing, needed for {possible[0]}: an absolute path (the "
            "file is made if missing)"
        )
    if taken["token_file"] and not taken["token_file"].startswith("/"):
        problems.append(
            f"{where}.token_file: given {taken['token_file']!r}, allowed is an absolute path"
        )
    certificate, key = _certificate(where, taken, problems, on_tls=on_tls)
    return EndpointConfig(
        endpoint=endpoint,
        certificate=certificate,
        key=key,
        mode=_mode(where, taken["mode"], problems),
        transports=frozenset(TransportKind[word.upper()] for word in wanted if word in possible),
        token_file=Path(taken["token_file"]) if taken["token_file"] else None,
        scrub=taken["scrub"],
        tenant=taken["tenant"],
    )


def _metrics(text: str, problems: list[str]) -> Endpoint | None:
    if not text:
        return None
    try:
        return Endpoint.parse(f"tcp://{text}")
    except ValueError:
        problems.append(
            f"metrics.listen: given {text!r}, allowed is address:port, like 127.0.0.1:9178 or "
            "[::1]:9178"
        )
        return None


def _certificate(
    where: str, taken: dict[str, Any], problems: list[str], *, on_tls: bool
) -> tuple[Path | None, Path | None]:
    """Both or neither; beside the token file if neither is named."""
    given = taken["certificate"], taken["key"]
    if any(given) and not on_tls:
        problems.append(f"{where}.certificate: given {given[0]!r}, allowed for a tls endpoint only")
    elif any(given) and not all(path.startswith("/") for path in given):
        problems.append(
            f"{where}.certificate: given {given[0]!r} and key {given[1]!r}, allowed are two "
            "absolute paths, or neither"
        )
    elif any(given):
        return Path(given[0]), Path(given[1])
    if not on_tls:
        return None, None
    folder = Path(taken["token_file"] or "/").parent
    return folder / OWN_CERTIFICATE, folder / OWN_KEY


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
