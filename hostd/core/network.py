"""The network of a host as its operator wants it: bridges, veth pairs, rate limits of tenants.

hostd tells tenants over TCP apart by the endpoint that they dial (each has a token of its own, and
may have a tenant) and, where their networks differ, by their addresses. So does a limit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
AddressRange: TypeAlias = IPv4Network | IPv6Network

OWN_PREFIX = "gp-in-"  # of the devices that limits need for what arrives
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")  # IFNAMSIZ, and what tools can print
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MOST_LIMITS = 1000


@dataclass(frozen=True, slots=True)
class Bridge:
    """A switch in the kernel. Machines and containers are plugged into it by whoever runs them."""

    name: str
    addresses: tuple[str, ...] = ()  # of this host there: "10.77.0.1/24"
    ports: tuple[str, ...] = ()  # network cards of the host that belong to it
    mtu: int = 0  # 0: the kernel's choice


@dataclass(frozen=True, slots=True)
class Veth:
    """A cable into a network namespace: of a container, or of anything else that has one."""

    name: str
    namespace: str  # as `ip netns` calls it, or a path
    peer: str = "gpupool0"  # what its end is called in there
    addresses: tuple[str, ...] = ()  # of the host's end
    peer_addresses: tuple[str, ...] = ()
    bridge: str = ""  # where the host's end is plugged in; empty: nowhere
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Door:
    """An address and port at which hostd listens; without an address: all of this host's."""

    port: int
    address: Address | None = None
    versions: tuple[int, ...] = (4,)  # of IP

    def __str__(self) -> str:
        return f"{self.address or 'any address'}, port {self.port}"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What a tenant may move over one interface."""

    tenant: str
    interface: str
    doors: tuple[Door, ...] = ()
    clients: tuple[AddressRange, ...] = ()
    to_mbit: int = 0  # from this host to its clients; 0: not limited
    from_mbit: int = 0


@dataclass(frozen=True, slots=True)
class Network:
    """All of it."""

    bridges: tuple[Bridge, ...] = ()
    veths: tuple[Veth, ...] = ()
    limits: tuple[RateLimit, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Of the interfaces that it makes."""
        return frozenset({one.name for one in self.bridges} | {one.name for one in self.veths})


def problems(network: Network) -> list[str]:
    """What is wrong with it, a line each."""
    found: list[str] = []
    for bridge in network.bridges:
        found += _check_name(f"bridge.name {bridge.name!r}", bridge.name)
        found += _check_addresses(f"bridge {bridge.name}: addresses", bridge.addresses)
        for port in bridge.ports:
            found += _check_name(f"bridge {bridge.name}: port {port!r}", port)
    for veth in network.veths:
        found += _check_veth(veth)
    names = [bridge.name for bridge in network.bridges] + [veth.name for veth in network.veths]
    found += [f"{name} is the name of two" for name in sorted(set(names)) if names.count(name) > 1]
    found += _check_limits(network.limits)
    return found


def _check_name(what: str, name: str) -> list[str]:
    if _NAME.fullmatch(name) and name not in (".", "..") and not name.startswith(OWN_PREFIX):
        return []
    return [
        f"{what}: allowed are 1 to 15 letters, digits, '-', '_' and '.', not beginning with "
        f"{OWN_PREFIX!r}"
    ]


def _check_addresses(what: str, texts: tuple[str, ...]) -> list[str]:
    found = []
    for text in texts:
        try:
            right = "/" in text and bool(ip_interface(text))
        except ValueError:
            right = False
        if not right:
            found.append(f"{what}: given {text!r}, allowed is an address with its length of prefix")
    return found


def _check_veth(veth: Veth) -> list[str]:
    found = _check_name(f"veth.name {veth.name!r}", veth.name)
    found += _check_name(f"veth {veth.name}: peer {veth.peer!r}", veth.peer)
    found += _check_addresses(f"veth {veth.name}: addresses", veth.addresses)
    found += _check_addresses(f"veth {veth.name}: peer_addresses", veth.peer_addresses)
    if not veth.namespace.startswith("/") and not _NAMESPACE.fullmatch(veth.namespace):
        found.append(
            f"veth {veth.name}: namespace: given {veth.namespace!r}, allowed is a name (`ip netns "
            "list`) or an absolute path, like /proc/123/ns/net"
        )
    if veth.bridge and veth.addresses:
        found.append(
            f"veth {veth.name}: the host's end is in bridge {veth.bridge}, so its addresses belong "
            "to that"
        )
    return found


def _check_limits(limits: tuple[RateLimit, ...]) -> list[str]:
    found: list[str] = []
    if len(limits) > MOST_LIMITS:
        found.append(f"{len(limits)} limits: at most {MOST_LIMITS} are allowed")
    tenants: set[tuple[str, str]] = set()
    whose: dict[tuple[str, object], str] = {}
    for limit in limits:
        where = f"limit of {limit.tenant or 'nobody'}"
        found += _check_name(f"{where}: interface {limit.interface!r}", limit.interface)
        if not limit.tenant:
            found.append("limit.tenant: given nothing, needed is whose it is")
        if not limit.doors and not limit.clients:
            found.append(f"{where}: name the tenant's endpoints, its clients' networks, or both")
        if not limit.to_mbit and not limit.from_mbit:
            found.append(f"{where}: limits nothing; give to_mbit, from_mbit, or both")
        if (limit.interface, limit.tenant) in tenants:
            found.append(f"{where}: there are two at {limit.interface}; make them one")
        tenants.add((limit.interface, limit.tenant))
        for what in (*limit.doors, *limit.clients):
            other = whose.setdefault((limit.interface, what), limit.tenant)
            if other != limit.tenant:
                found.append(f"{where}: {what} is {other}'s already; one of them has to go")
    return found


class NetworkError(Exception):
    """It cannot be done. The text says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was looked at: as it should be, or what was (or would be) done about it."""

    what: str  # "bridge gpupool0"
    state: str  # ok, made, changed, removed, failed
    detail: str = ""
