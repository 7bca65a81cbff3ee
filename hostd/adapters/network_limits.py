"""Rate limits of tenants at an interface: HTB on what leaves it, and what arrives is led through a
device of ours (ifb) with HTB of its own (tc-htb(8), tc-mirred(8)).

Ours are the qdiscs with our handle and the devices with our alias, which also says what was asked
for. Where somebody else has a qdisc at an interface, that stays and we refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyroute2 import protocols
from pyroute2.netlink.exceptions import NetlinkError

from gpupool.hostd.adapters.network_links import ALIAS, Link, find, links
from gpupool.hostd.core.network import OWN_PREFIX, NetworkError
from gpupool.hostd.core.network_shape import Rule, Shape

_MAJOR = 0x6770  # "gp": of our qdiscs, and where our filters begin
_ROOT = _MAJOR << 16
_TC_ROOT = 0xFFFF_FFFF  # linux/pkt_sched.h: TC_H_ROOT
_INGRESS = 0xFFFF_FFF2  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
_ARRIVING = ("ingress", "clsact")
_WAITING_PACKETS = 1000  # of a class, before it drops
_PROTOCOLS = {4: protocols.ETH_P_IP, 6: protocols.ETH_P_IPV6}
_HIGH_BYTES_S = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Passed:
    """What a class has let through."""

    minor: int
    bytes_s: int
    bytes: int
    dropped: int  # packets


def differs(route: Any, link: Link, outward: Shape, inward: Shape) -> bool:
    """Whether anything is not as it should be. Raises NetworkError where we may not touch it."""
    _refuse_foreign(route, link)
    helper = _helper(route, link)
    if helper is None or helper.alias != _alias(link, outward, inward) or not helper.up:
        return True
    return (
        _have(route, link.index, _ROOT) != _should(outward)
        or _have(route, helper.index, _ROOT) != _should(inward)
        or _filters(route, link.index, _INGRESS) != _should(inward)[1]
    )


def put(route: Any, link: Link, outward: Shape, inward: Shape) -> None:
    """In place of what there is of ours. Raises NetworkError."""
    _refuse_foreign(route, link)
    clear(route, link)
    try:
        name = f"{OWN_PREFIX}{link.index}"
        route.link("add", ifname=name, kind="ifb")
    except NetlinkError as error:
        raise NetworkError(
            f"the kernel makes no device for what arrives: {error.args[-1]} (modprobe ifb)"
        ) from error
    helper = find(route, name)
    if helper is None:
        raise NetworkError(f"interface {name} has gone meanwhile; try again")
    # The alias of one that is not complete says nothing: it is made anew the next time.
    route.link("set", index=helper.index, ifalias=ALIAS, state="up")
    if outward.classes:
        _put_classes(route, link.index, outward)
    if inward.classes:
        _put_classes(route, helper.index, inward)
        if _arriving(route, link.index) is None:
            _ask(route, "ingress", "add", "ingress", link.index)
        lead = {"kind": "mirred", "direction": "egress", "action": "redirect"}
        for number, rule in enumerate(inward.rules):
            _put_rule(route, link.index, _INGRESS, number, rule, {**lead, "ifindex": helper.index})
    route.link("set", index=helper.index, ifalias=_alias(link, outward, inward))


def clear(route: Any, link: Link) -> bool:
    """Takes back what is ours at it; the kernel gives it its usual qdisc. False: there was none."""
    found = False
    if any(one["handle"] == _ROOT for one in _qdiscs(route, link.index)):
        route.tc("del", index=link.index, parent=_TC_ROOT, handle=_ROOT)
        found = True
    kind = _arriving(route, link.index)
    if kind is not None:
        for info in sorted({one["info"] for one, _ in _own_filters(route, link.index, _INGRESS)}):
            route.tc("del-filter", index=link.index, parent=_INGRESS, info=info)
            found = True
        if kind == "ingress" and not list(route.get_filters(index=link.index, parent=_INGRESS)):
            route.tc("del", "ingress", index=link.index)
    helper = _helper(route, link)
    if helper is not None:
        route.link("del", index=helper.index)
        found = True
    return found


def limited(route: Any) -> list[Link]:
    """Interfaces at which something of ours is."""
    found = []
    everything = links(route)
    helped = {one.name for one in everything if one.ours and one.kind == "ifb"}
    for link in everything:
        rooted = any(one["handle"] == _ROOT for one in _qdiscs(route, link.index))
        if f"{OWN_PREFIX}{link.index}" in helped or (rooted and link.kind != "ifb"):
            found.append(link)
    return found


def passed(route: Any, link: Link) -> tuple[list[Passed], list[Passed]]:
    """What has left and what has arrived, of the classes that are there."""
    helper = _helper(route, link)
    return _counted(route, link.index), (_counted(route, helper.index) if helper else [])


def _refuse_foreign(route: Any, link: Link) -> None:
    for one in _qdiscs(route, link.index):
        # The kernel's own have no number.
        if one["parent"] == _TC_ROOT and one["handle"] not in (0, _ROOT):
            raise NetworkError(
                f"{link.name} has a qdisc of somebody else's ({one.get_attr('TCA_KIND')}); leave "
                f"its limits out here, or remove it (tc qdisc del dev {link.name} root)"
            )


def _alias(link: Link, outward: Shape, inward: Shape) -> str:
    return f"{ALIAS} {link.name} {outward.digest} {inward.digest}"


def _helper(route: Any, link: Link) -> Link | None:
    found = find(route, f"{OWN_PREFIX}{link.index}")
    return found if found is not None and found.ours and found.kind == "ifb" else None


def _put_classes(route: Any, index: int, shape: Shape) -> None:
    _ask(route, "sch_htb", "add", "htb", index, handle=_ROOT, default=0)
    for one in shape.classes:
        burst = one.burst_bytes
        route.tc(
            "add-class",
            "htb",
            index,
            handle=_ROOT | one.minor,
            parent=_ROOT,
            rate=one.bytes_s,
            ceil=one.bytes_s,
            burst=burst,
            cburst=burst,
        )
        route.tc(
            "add",
            "pfifo",
            index,
            parent=_ROOT | one.minor,
            handle=(_MAJOR + one.minor) << 16,
            limit=_WAITING_PACKETS,
        )
    for number, rule in enumerate(shape.rules):
        _put_rule(route, index, _ROOT, number, rule, None)


def _put_rule(
    route: Any, index: int, parent: int, number: int, rule: Rule, action: dict[str, Any] | None
) -> None:
    _ask(
        route,
        "cls_u32 or act_mirred" if action else "cls_u32",
        "add-filter",
        "u32",
        index,
        parent=parent,
        prio=_MAJOR + number,
        protocol=_PROTOCOLS[rule.version],
        target=_ROOT | rule.minor,
        keys=[f"{value:#010x}/{mask:#010x}+{offset}" for value, mask, offset in rule.words],
        **({"action": action} if action else {}),
    )


def _ask(route: Any, part: str, *words: Any, **more: Any) -> None:
    """Says which part of the kernel is missing where one is."""
    try:
        route.tc(*words, **more)
    except NetlinkError as error:
        raise NetworkError(
            f"the kernel refuses {words[1]}: {error.args[-1]}; does it have {part}? (modprobe)"
        ) from error


def _qdiscs(route: Any, index: int) -> list[Any]:
    return list(route.get_qdiscs(index=index))


def _arriving(route: Any, index: int) -> str | None:
    kinds = [str(one.get_attr("TCA_KIND")) for one in _qdiscs(route, index)]
    return next((kind for kind in kinds if kind in _ARRIVING), None)


def _should(shape: Shape) -> tuple[dict[int, int], dict[int, int]]:
    """Minor of each class and its rate; number of each rule and its class."""
    return (
        {one.minor: one.bytes_s for one in shape.classes},
        {number: rule.minor for number, rule in enumerate(shape.rules)},
    )


def _have(route: Any, index: int, parent: int) -> tuple[dict[int, int], dict[int, int]]:
    if not any(one["handle"] == _ROOT for one in _qdiscs(route, index)):
        return {}, {}
    return {one.minor: one.bytes_s for one in _counted(route, index)}, _filters(
        route, index, parent
    )


def _filters(route: Any, index: int, parent: int) -> dict[int, int]:
    """Number of each of our rules and its class."""
    return {
        (one["info"] >> 16) - _MAJOR: target & 0xFFFF
        for one, target in _own_filters(route, index, parent)
    }


def _own_filters(route: Any, index: int, parent: int) -> Iterator[tuple[Any, int]]:
    for one in route.get_filters(index=index, parent=parent):
        options = one.get_attr("TCA_OPTIONS")
        target = options.get_attr("TCA_U32_CLASSID") if options is not None else None
        if target is not None and target >> 16 == _MAJOR:
            yield one, target


def _counted(route: Any, index: int) -> list[Passed]:
    found = []
    for one in route.get_classes(index=index):
        options = one.get_attr("TCA_OPTIONS")
        statistics = one.get_attr("TCA_STATS2")
        if one["handle"] >> 16 != _MAJOR or options is None or statistics is None:
            continue
        rate = options.get_attr("TCA_HTB_PARMS")["rate"]
        if rate == _HIGH_BYTES_S:
            rate = options.get_attr("TCA_HTB_RATE64") or rate
        basic = statistics.get_attr("TCA_STATS_BASIC")
        queue = statistics.get_attr("TCA_STATS_QUEUE")
        found.append(Passed(one["handle"] & 0xFFFF, rate, basic["bytes"], queue["drops"]))
    return found
