"""Bridges and veth pairs, in the kernel, by netlink (pyroute2).

What is ours says so in its alias (`ip link`), so nothing has to be written down elsewhere, and
nothing of anybody else's is touched. Everything is compared first: what is as it should be stays.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetNS
from pyroute2.netlink.exceptions import NetlinkError

from gpupool.hostd.core.network import Bridge, NetworkError, Veth

ALIAS = "gpupool"  # what begins the alias of everything of ours
NAMESPACES = Path("/run/netns")  # ip-netns(8)
_NO_DETECTION = 0x02  # IFA_F_NODAD: an address in doubt (rfc4862) is one at which nobody can listen
_IFF_UP = 1
_LINK_SCOPE = 253


@dataclass(frozen=True, slots=True)
class Link:
    """One of this machine, or of a namespace."""

    index: int
    name: str
    kind: str  # bridge, veth, ifb; empty: a card
    alias: str
    mtu: int
    up: bool
    master: int  # 0: none
    other_end: int  # index of a veth's other end, there

    @property
    def ours(self) -> bool:
        """We made it."""
        return self.alias == ALIAS or self.alias.startswith(ALIAS + " ")


@contextmanager
def kernel(namespace: str = "") -> Iterator[Any]:
    """Netlink of this machine or of a namespace. Raises NetworkError."""
    with refused():
        route = IPRoute() if not namespace else NetNS(str(place(namespace)), flags=0)
    with route:
        yield route


@contextmanager
def refused() -> Iterator[None]:
    """Makes a NetworkError of what the kernel says."""
    try:
        yield
    except NetlinkError as error:
        raise NetworkError(f"the kernel refuses it: {error.args[-1]}") from error
    except OSError as error:
        raise NetworkError(f"{error.filename or 'netlink'}: {error.strerror or error}") from error


def place(namespace: str) -> Path:
    """The file of a namespace. Raises NetworkError."""
    path = Path(namespace) if namespace.startswith("/") else NAMESPACES / namespace
    if not path.exists():
        raise NetworkError(
            f"no network namespace {namespace}; make it first (`ip netns add`), or start what has "
            "it"
        )
    return path


def links(route: Any) -> list[Link]:
    """All that are there."""
    return [_link(message) for message in route.get_links()]


def find(route: Any, name: str) -> Link | None:
    """By name."""
    return next((one for one in links(route) if one.name == name), None)


def bridge_differs(route: Any, bridge: Bridge) -> list[str] | None:
    """What is not as it should be; None: it is not there. Raises NetworkError where somebody else
    has something of that name.
    """
    link = _own(route, bridge.name, "bridge")
    if link is None:
        return None
    found = _differs(route, link, bridge.addresses, bridge.mtu)
    for port in bridge.ports:
        card = find(route, port)
        if card is None or card.master != link.index or not card.up:
            found.append(f"port {port}")
    return found


def put_bridge(route: Any, bridge: Bridge) -> None:
    """Makes it, or what it lacks. Raises NetworkError."""
    cards = [_card(route, bridge.name, port) for port in bridge.ports]
    link = _own(route, bridge.name, "bridge")
    if link is None:
        route.link("add", ifname=bridge.name, kind="bridge")
        link = _made(route, bridge.name)
        route.link("set", index=link.index, ifalias=ALIAS)
    _set(route, link, bridge.addresses, bridge.mtu)
    for card in cards:
        route.link("set", index=card.index, master=link.index)
        route.link("set", index=card.index, state="up")


def veth_differs(route: Any, veth: Veth) -> list[str] | None:
    """As for bridges; None also where its other end is not where it should be."""
    link = _own(route, veth.name, "veth")
    with kernel(veth.namespace) as inside:
        peer = find(inside, veth.peer)
        # Which of them belong together is told by their numbers alone; that a veth of another
        # namespace has the same is told by its name's being another's then.
        if link is None or peer is None or (peer.index, peer.kind) != (link.other_end, "veth"):
            return None
        found = [f"peer's {one}" for one in _differs(inside, peer, veth.peer_addresses, veth.mtu)]
    found += _differs(route, link, veth.addresses, veth.mtu)
    if link.master != _bridge(route, veth):
        found.append("bridge")
    return found


def put_veth(route: Any, veth: Veth) -> None:
    """Makes it, or what it lacks. Raises NetworkError."""
    master = _bridge(route, veth)
    if veth_differs(route, veth) is None:
        old = _own(route, veth.name, "veth")
        if old is not None:  # its other end is elsewhere: it goes with this one
            route.link("del", index=old.index)
        namespace = os.open(place(veth.namespace), os.O_RDONLY | os.O_CLOEXEC)
        try:
            peer = {"ifname": veth.peer, "net_ns_fd": namespace}
            route.link("add", ifname=veth.name, kind="veth", peer=peer)
        finally:
            os.close(namespace)
        route.link("set", index=_made(route, veth.name).index, ifalias=ALIAS)
    with kernel(veth.namespace) as inside:
        _set(inside, _made(inside, veth.peer), veth.peer_addresses, veth.mtu)
    link = _made(route, veth.name)
    route.link("set", index=link.index, master=master)
    if master:
        # The tenants of one bridge reach this host and its cards there, and not one another.
        route.brport("set", index=link.index, isolated=1)
    _set(route, link, veth.addresses, veth.mtu)


def remove(route: Any, link: Link) -> None:
    """With what hangs on it: a veth's other end goes, ports of a bridge are free."""
    route.link("del", index=link.index)


def _link(message: Any) -> Link:
    information = message.get_attr("IFLA_LINKINFO")
    return Link(
        message["index"],
        message.get_attr("IFLA_IFNAME") or "",
        (information.get_attr("IFLA_INFO_KIND") or "") if information else "",
        message.get_attr("IFLA_IFALIAS") or "",
        message.get_attr("IFLA_MTU") or 0,
        bool(message["flags"] & _IFF_UP),
        message.get_attr("IFLA_MASTER") or 0,
        message.get_attr("IFLA_LINK") or 0,
    )


def _own(route: Any, name: str, kind: str) -> Link | None:
    link = find(route, name)
    if link is not None and (not link.ours or link.kind != kind):
        raise NetworkError(
            f"there is an interface {name} that gpupool has not made; take another name, or remove "
            f"that one (ip link del {name})"
        )
    return link


def _made(route: Any, name: str) -> Link:
    link = find(route, name)
    if link is None:
        raise NetworkError(f"interface {name} has gone meanwhile; try again")
    return link


def _bridge(route: Any, veth: Veth) -> int:
    if not veth.bridge:
        return 0
    link = find(route, veth.bridge)
    if link is None or link.kind != "bridge":
        raise NetworkError(f"there is no bridge {veth.bridge}; name one that is, or list it")
    return link.index


def _card(route: Any, bridge: str, name: str) -> Link:
    """A card that can be a port. A host whose card has its address would be cut off."""
    card = find(route, name)
    if card is None:
        raise NetworkError(f"there is no interface {name} (ip link), so it cannot be a port")
    own = find(route, bridge)
    if card.master and (own is None or card.master != own.index):
        raise NetworkError(f"{name} belongs to another bridge or bond already")
    if _addresses(route, card.index):
        raise NetworkError(
            f"{name} has addresses, which would stop to work in a bridge; take them away first, "
            f"and give them to bridge {bridge}"
        )
    return card


def _addresses(route: Any, index: int) -> set[str]:
    """With their lengths of prefix; without those that the kernel makes (fe80::)."""
    return {
        f"{message.get_attr('IFA_LOCAL') or message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}"
        for message in route.get_addr(index=index)
        if message["scope"] != _LINK_SCOPE
    }


def _wanted(addresses: tuple[str, ...]) -> set[str]:
    return {str(ipaddress.ip_interface(text)) for text in addresses}


def _differs(route: Any, link: Link, addresses: tuple[str, ...], mtu: int) -> list[str]:
    found = []
    if _addresses(route, link.index) != _wanted(addresses):
        found.append("addresses")
    if mtu and link.mtu != mtu:
        found.append("mtu")
    if not link.up:
        found.append("down")
    return found


def _set(route: Any, link: Link, addresses: tuple[str, ...], mtu: int) -> None:
    have, wanted = _addresses(route, link.index), _wanted(addresses)
    for text in sorted(have - wanted):
        address, _, length = text.partition("/")
        route.addr("del", index=link.index, address=address, prefixlen=int(length))
    for text in sorted(wanted - have):
        address, _, length = text.partition("/")
        more = {"flags": _NO_DETECTION} if ":" in address else {}
        route.addr("add", index=link.index, address=address, prefixlen=int(length), **more)
    if mtu and link.mtu != mtu:
        route.link("set", index=link.index, mtu=mtu)
    route.link("set", index=link.index, state="up")
