"""The section [controller] of hostd's configuration, checked."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gpupool.hostd.endpoint import Endpoint

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_FILES = ("token_file", "ca_file", "certificate", "key")


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """How to reach the controller, and as whom."""

    targets: tuple[str, ...]  # "host:port"
    tls: bool
    node_name: str
    token_file: Path | None = None
    ca_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    endpoint: str = ""  # empty: the first tls endpoint


class Listening(Protocol):
    """An endpoint of the configuration."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        ...


def controller_config(
    top: Mapping[str, Any], endpoints: Sequence[Listening], problems: list[str]
) -> ControllerConfig | None:
    """The section, or None where no controller is named. Adds what is wrong to `problems`."""
    taken = {
        name.removeprefix("controller."): value
        for name, value in top.items()
        if name.startswith("controller.")
    }
    if not taken["url"]:
        return None
    files = {}
    for name in _FILES:
        text = taken[name]
        if text and not text.startswith("/"):
            problems.append(f"controller.{name}: given {text!r}, allowed is an absolute path")
        files[name] = Path(text) if text else None
    targets, tls = _targets(taken, problems)
    if bool(files["certificate"]) != bool(files["key"]):
        problems.append("controller.certificate and controller.key: needed are both, or neither")
    if not files["token_file"] and not (tls and files["certificate"]):
        problems.append(
            "controller.token_file: given nothing, needed is the file with this node's token (or "
            "controller.certificate and controller.key)"
        )
    return ControllerConfig(
        targets=targets,
        tls=tls,
        node_name=_name(taken["node_name"], problems),
        labels=_labels(taken["labels"], problems),
        endpoint=taken["endpoint"] or _first_tls(endpoints),
        **files,
    )


def _targets(taken: Mapping[str, Any], problems: list[str]) -> tuple[tuple[str, ...], bool]:
    found = []
    for text in str(taken["url"]).split(","):
        scheme, _, address = text.strip().partition("://")
        host, _, port = address.rpartition(":")
        if scheme not in ("tls", "tcp") or not host or not port.isdecimal():
            problems.append(
                f"controller.url: given {text.strip()!r}, allowed is tls://host:port, or "
                "tcp://host:port without TLS"
            )
            continue
        found.append((scheme, host, f"{host}:{port}"))
    if len({scheme for scheme, _, _ in found}) > 1:
        problems.append("controller.url: given tls and tcp, allowed is one of them for all")
    tls = all(scheme == "tls" for scheme, _, _ in found)
    away = [host for scheme, host, _ in found if scheme == "tcp" and not _is_here(host)]
    if away and not taken["insecure"]:
        problems.append(
            f"controller.insecure: given False, allowed for tcp:// to {away[0]} is true: token and "
            "orders travel in clear; use tls:// instead"
        )
    return tuple(target for _, _, target in found), tls


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _name(given: str, problems: list[str]) -> str:
    name = given or socket.gethostname().lower()
    if not _NAME.fullmatch(name):
        problems.append(
            f"controller.node_name: given {name!r}, allowed are 1 to 63 of a-z, 0-9, '.', '_', '-'"
        )
    return name


def _labels(given: Sequence[str], problems: list[str]) -> dict[str, str]:
    labels = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key or len(key) > 63 or len(value) > 255 or not text.isprintable():
            problems.append(f'controller.labels: given {text!r}, allowed is "key=value"')
        labels[key] = value
    return labels


def _first_tls(endpoints: Sequence[Listening]) -> str:
    return next((str(one.endpoint) for one in endpoints if one.endpoint.tls), "")
