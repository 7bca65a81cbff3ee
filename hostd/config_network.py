"""network.toml: the network of a host, checked. Its documentation is docs/network.md, which
tests/hostd/test_network_config.py holds to the keys here.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpupool.hostd.core.network import (
    AddressRange,
    Bridge,
    Door,
    Network,
    RateLimit,
    Veth,
    problems,
)
from gpupool.hostd.endpoint import Endpoint
from gpupool.wire.settings import Key

if sys.version_info >= (3, 11):
    import tomllib
else:
    # Installed where Python needs it (pyproject.toml).
    import tomli as tomllib

NETWORK_PATH = Path("/etc/gpupool/network.toml")
_MOST_MTU, _MOST_MBIT = 65535, 1_000_000

NETWORK_KEYS: tuple[Key, ...] = (
    Key("bridge.name", str, "", "what it is called: at most 15 characters"),
    Key("bridge.addresses", list, [], 'of this host there: ["10.77.0.1/24"]'),
    Key(
        "bridge.ports", list, [], "network cards of this host that belong to it, without addresses"
    ),
    Key(
        "bridge.mtu",
        int,
        0,
        "longest packet in bytes; 0: the kernel's choice",
        low=0,
        high=_MOST_MTU,
    ),
    Key("veth.name", str, "", "what the host's end is called"),
    Key("veth.namespace", str, "", "where the other end is: a name (`ip netns list`) or a path"),
    Key("veth.peer", str, "gpupool0", "what the other end is called there"),
    Key("veth.addresses", list, [], "of the host's end; none where it is in a bridge"),
    Key("veth.peer_addresses", list, [], "of the other end"),
    Key("veth.bridge", str, "", "bridge that the host's end is plugged into; empty: none"),
    Key(
        "veth.mtu", int, 0, "longest packet in bytes; 0: the kernel's choice", low=0, high=_MOST_MTU
    ),
    Key("limit.tenant", str, "", "whose it is, as `gpupool network show` says"),
    Key("limit.interface", str, "", "over which the tenant's clients come: a card, bridge or veth"),
    Key(
        "limit.endpoints", list, [], "of hostd's, that are this tenant's: [\"tls://10.0.0.7:9177\"]"
    ),
    Key("limit.clients", list, [], 'networks that are this tenant\'s alone: ["10.1.0.0/16"]'),
    Key(
        "limit.to_mbit",
        int,
        0,
        "most that this host sends them, in Mbit/s; 0: not limited",
        low=0,
        high=_MOST_MBIT,
    ),
    Key(
        "limit.from_mbit",
        int,
        0,
        "most that they send, in Mbit/s; 0: not limited",
        low=0,
        high=_MOST_MBIT,
    ),
)


class NetworkConfigError(ValueError):
    """It cannot be used. One line for each thing that is wrong."""


def load(path: Path) -> Network:
    """Raises NetworkConfigError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NetworkConfigError(
            f"{path}: {error.strerror}; docs/network.md says what stands there"
        ) from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise NetworkConfigError(f"{path} is no TOML: {error}") from error
    try:
        return parse(document)
    except NetworkConfigError as error:
        lines = "\n".join(f"{path}: {line}" for line in str(error).splitlines())
        raise NetworkConfigError(lines) from error


def parse(document: Mapping[str, Any]) -> Network:
    """Raises NetworkConfigError that lists everything wrong at once."""
    wrong = [
        f"{name}: no such section; known are [[bridge]], [[veth]] and [[limit]]"
        for name in document
        if name not in ("bridge", "veth", "limit")
    ]
    network = Network(
        tuple(Bridge(**one) for one in _sections(document, "bridge", wrong)),
        tuple(Veth(**one) for one in _sections(document, "veth", wrong)),
        tuple(_limit(one, wrong) for one in _sections(document, "limit", wrong)),
    )
    if not wrong:
        wrong = problems(network)
    if wrong:
        raise NetworkConfigError("\n".join(wrong))
    return network


def _sections(
    document: Mapping[str, Any], section: str, wrong: list[str]
) -> Iterator[dict[str, Any]]:
    """The fields of each, with lists as tuples; those that are wrong are left out."""
    keys = {key.name.partition(".")[2]: key for key in NETWORK_KEYS if key.name.startswith(section)}
    given = document.get(section, [])
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        wrong.append(f"{section}: given {given!r}, allowed is one or more sections [[{section}]]")
        return
    for number, item in enumerate(given):
        where = f"{section}[{number}]"
        bad = [
            f"{where}.{name}: no such key; known are {', '.join(keys)}"
            for name in item
            if name not in keys
        ]
        values = {name: item.get(name, key.default) for name, key in keys.items()}
        for name, value in values.items():
            if text := keys[name].check(value):
                bad.append(text.replace(f"{section}.", f"{where}.", 1))
        wrong += bad
        if not bad:
            yield {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
            }


def _limit(given: dict[str, Any], wrong: list[str]) -> RateLimit:
    where = f"limit of {given['tenant'] or 'nobody'}"
    doors = [_door(text, where, wrong) for text in given.pop("endpoints")]
    clients = [_range(text, where, wrong) for text in given.pop("clients")]
    return RateLimit(
        doors=tuple(one for one in doors if one is not None),
        clients=tuple(one for one in clients if one is not None),
        **given,
    )


def _door(text: str, where: str, wrong: list[str]) -> Door | None:
    try:
        endpoint = Endpoint.parse(text)
        address = ipaddress.ip_address(endpoint.host)
    except ValueError:
        wrong.append(
            f"{where}: endpoints: given {text!r}, allowed is tls:// or tcp:// with the address and "
            "port at which hostd listens, as in hostd.toml; a name is not"
        )
        return None
    if not endpoint.port:
        wrong.append(f"{where}: endpoints: {text!r} has no port of its own; give it one")
        return None
    if not address.is_unspecified:
        return Door(endpoint.port, address, (address.version,))
    # A socket at [::] takes IPv4, too (ipv6(7)).
    return Door(endpoint.port, None, (4, 6) if address.version == 6 else (4,))


def _range(text: str, where: str, wrong: list[str]) -> AddressRange | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        wrong.append(f"{where}: clients: given {text!r}, allowed is a network: {error}")
        return None
