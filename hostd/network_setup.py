"""Brings the network of this machine to what network.toml says, or takes it all back.

Each thing by itself: one that cannot be had is told and does not keep the others away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from gpupool.hostd.adapters import network_limits, network_links
from gpupool.hostd.adapters.network_links import kernel, refused
from gpupool.hostd.core.network import OWN_PREFIX, Network, NetworkError, RateLimit, Step
from gpupool.hostd.core.network_shape import shape


@dataclass(frozen=True, slots=True)
class Flow:
    """A direction of a tenant's limit and what it has let through."""

    interface: str
    tenant: str  # empty: packets that no honest client sends
    direction: str  # "to" or "from" the tenant
    mbit: float
    bytes: int
    dropped_packets: int


def apply(network: Network, *, check: bool) -> Iterator[Step]:
    """`check`: only says what it would do. What is ours and no longer wanted goes first."""
    yield from _remove(network, check=check)
    with kernel() as route:
        for bridge in network.bridges:
            yield _step(
                f"bridge {bridge.name}",
                partial(network_links.bridge_differs, route, bridge),
                partial(network_links.put_bridge, route, bridge),
                check=check,
            )
        for veth in network.veths:
            yield _step(
                f"veth {veth.name}",
                partial(network_links.veth_differs, route, veth),
                partial(network_links.put_veth, route, veth),
                check=check,
            )
        coming = network.names if check else frozenset()
        for interface, limits in _by_interface(network):
            yield _limit_step(route, interface, limits, coming, check=check)


def remove(*, check: bool) -> Iterator[Step]:
    """Takes back all that is ours."""
    yield from _remove(Network(), check=check)


def flows(network: Network) -> list[Flow]:
    """Of the limits that are in force."""
    found = []
    with kernel() as route:
        for interface, limits in _by_interface(network):
            link = network_links.find(route, interface)
            if link is None:
                continue
            for outward, passed in zip(
                (True, False), network_limits.passed(route, link), strict=True
            ):
                tenants = {one.minor: one.tenant for one in shape(limits, outward=outward).classes}
                found += [
                    Flow(
                        interface,
                        tenants[one.minor],
                        "to" if outward else "from",
                        one.bytes_s / 125_000,
                        one.bytes,
                        one.dropped,
                    )
                    for one in passed
                    if one.minor in tenants
                ]
    return found


def _by_interface(network: Network) -> Iterator[tuple[str, list[RateLimit]]]:
    by_name = sorted(network.limits, key=lambda one: one.interface)  # stable: the file's order
    for interface, limits in groupby(by_name, key=lambda one: one.interface):
        yield interface, list(limits)


def _remove(network: Network, *, check: bool) -> Iterator[Step]:
    wanted = network.names
    shaped = {one.interface for one in network.limits}
    with kernel() as route:
        for link in network_limits.limited(route):
            if link.name not in shaped:
                yield _removal(
                    f"limits at {link.name}",
                    partial(network_limits.clear, route, link),
                    check=check,
                )
        for link in network_links.links(route):
            if link.ours and link.kind != "ifb" and link.name not in wanted:
                yield _removal(
                    f"{link.kind} {link.name}",
                    partial(network_links.remove, route, link),
                    check=check,
                )
        # Of interfaces that have gone: what arrived there came through these.
        there = network_links.links(route)
        used = {f"{OWN_PREFIX}{one.index}" for one in there}
        for link in there:
            if link.ours and link.kind == "ifb" and link.name not in used:
                yield _removal(
                    f"{link.kind} {link.name}",
                    partial(network_links.remove, route, link),
                    check=check,
                )


def _removal(what: str, do: Callable[[], object], *, check: bool) -> Step:
    try:
        with refused():
            if not check:
                do()
    except NetworkError as error:
        return Step(what, "failed", str(error))
    return Step(what, "removed")


def _step(
    what: str,
    differs: Callable[[], list[str] | None],
    put: Callable[[], None],
    *,
    check: bool,
) -> Step:
    try:
        with refused():
            difference = differs()
            if difference == []:
                return Step(what, "ok")
            if not check:
                put()
    except NetworkError as error:
        return Step(what, "failed", str(error))
    if difference is None:
        return Step(what, "made")
    return Step(what, "changed", ", ".join(difference))


def _limit_step(
    route: Any, interface: str, limits: list[RateLimit], coming: frozenset[str], *, check: bool
) -> Step:
    what = f"limits at {interface}"
    tenants = ", ".join(one.tenant for one in limits)
    try:
        with refused():
            link = network_links.find(route, interface)
            if link is None:
                if interface in coming:
                    return Step(what, "made", tenants)
                raise NetworkError(f"there is no interface {interface} (ip link)")
            outward, inward = shape(limits, outward=True), shape(limits, outward=False)
            if not network_limits.differs(route, link, outward, inward):
                return Step(what, "ok", tenants)
            had = link in network_limits.limited(route)
            if not check:
                network_limits.put(route, link, outward, inward)
            return Step(what, "changed" if had else "made", tenants)
    except NetworkError as error:
        return Step(what, "failed", str(error))
