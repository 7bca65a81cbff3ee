"""What the kernel is told to hold tenants to their limits: classes of HTB and the rules that sort
packets into them (tc-htb(8), tc-u32(8)).

A rule looks at fixed places of a packet. Whoever can make packets with IP options, fragments or
IPv6 extension headers could move what it looks for; so TCP of that form, which no honest client
sends, is sorted into one slow class of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpupool.hostd.core.network import AddressRange, Door, RateLimit

_ODD, _FIRST = 1, 16  # minor numbers of classes
FREE = 0  # of packets that nothing limits
ODD_MBIT = 1
_TCP = 6
# What may stand before TCP's header in IPv6: hop-by-hop, routing, fragment, authentication,
# destination, mobility, host identity, shim6 (IANA, "IPv6 Extension Header Types").
_EXTENSIONS = (0, 43, 44, 51, 60, 135, 139, 140)
_BYTES_A_MBIT = 125_000
_SHORTEST_BURST = 65_536  # one packet as cards and kernel pass them on (GSO)
_BURST_S = 0.01

Word = tuple[int, int, int]  # value, mask, offset in bytes: 32 bits in the network's order


@dataclass(frozen=True, slots=True)
class Rule:
    """Packets of an IP version in which all those words are so go into a class."""

    version: int
    words: tuple[Word, ...]
    minor: int


@dataclass(frozen=True, slots=True)
class RateClass:
    """What passes together."""

    minor: int
    tenant: str  # empty: the odd ones
    bytes_s: int

    @property
    def burst_bytes(self) -> int:
        """What may pass at once."""
        return max(_SHORTEST_BURST, int(self.bytes_s * _BURST_S))


@dataclass(frozen=True, slots=True)
class Shape:
    """One direction of one interface. The first rule that fits counts; no rule: free."""

    classes: tuple[RateClass, ...] = ()
    rules: tuple[Rule, ...] = ()

    @property
    def digest(self) -> str:
        """Differs where two differ."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def shape(limits: Sequence[RateLimit], *, outward: bool) -> Shape:
    """`limits` of one interface; `outward`: what this host sends, else what arrives."""
    classes = [
        RateClass(_FIRST + number, limit.tenant, mbit * _BYTES_A_MBIT)
        for number, limit in enumerate(limits)
        if (mbit := limit.to_mbit if outward else limit.from_mbit)
    ]
    if not classes:
        return Shape()
    counted = {one.minor for one in classes}
    rules: list[Rule] = []
    for number, limit in enumerate(limits):
        # A tenant whose other direction alone is limited goes free here, whatever comes after it.
        minor = _FIRST + number if _FIRST + number in counted else FREE
        rules += [rule for door in limit.doors for rule in _door(door, minor, outward=outward)]
    doors = [door for limit in limits for door in limit.doors]
    rules += _odd(doors, outward=outward)
    for number, limit in enumerate(limits):
        minor = _FIRST + number if _FIRST + number in counted else FREE
        rules += [_client(network, minor, outward=outward) for network in limit.clients]
    if doors:
        classes.append(RateClass(_ODD, "", ODD_MBIT * _BYTES_A_MBIT))
    return Shape(tuple(classes), tuple(rules))


def _door(door: Door, minor: int, *, outward: bool) -> Iterator[Rule]:
    """TCP of that address and port of this host."""
    for version in door.versions:
        port_at = 20 if version == 4 else 40
        port = (door.port << 16, 0xFFFF0000) if outward else (door.port, 0xFFFF)
        words = (*_plain(version), *_local(door, version, outward=outward), (*port, port_at))
        yield Rule(version, words, minor)


def _client(network: AddressRange, minor: int, *, outward: bool) -> Rule:
    """Everything between this host and those addresses."""
    words = _address(
        int(network.network_address), network.prefixlen, network.version, source=not outward
    )
    return Rule(network.version, words or ((0, 0, 0),), minor)


def _odd(doors: Sequence[Door], *, outward: bool) -> Iterator[Rule]:
    """TCP that has its ports elsewhere, at an address of some door."""
    places = dict.fromkeys(
        (version, _local(door, version, outward=outward))
        for door in doors
        for version in door.versions
    )
    for version, local in places:
        if version == 6:
            for header in _EXTENSIONS:
                yield Rule(6, ((header << 8, 0xFF00, 4), *local), _ODD)
            continue
        # A header of 6 or 7, then of 8 to 15 words; and any bit of a fragment's offset.
        yield Rule(4, ((_TCP << 16, 0xFF0000, 8), (0x06000000, 0x0E000000, 0), *local), _ODD)
        yield Rule(4, ((_TCP << 16, 0xFF0000, 8), (0x08000000, 0x08000000, 0), *local), _ODD)
        for bit in range(13):
            yield Rule(4, ((_TCP << 16, 0xFF0000, 8), (1 << bit, 1 << bit, 4), *local), _ODD)


def _plain(version: int) -> tuple[Word, ...]:
    """TCP right behind the shortest header, and no later part of a packet in pieces."""
    if version == 6:
        return ((_TCP << 8, 0xFF00, 4),)
    return ((0x05000000, 0x0F000000, 0), (0, 0x1FFF, 4), (_TCP << 16, 0xFF0000, 8))


def _local(door: Door, version: int, *, outward: bool) -> tuple[Word, ...]:
    if door.address is None or door.address.version != version:
        return ()
    return _address(int(door.address), door.address.max_prefixlen, version, source=outward)


def _address(number: int, length: int, version: int, *, source: bool) -> tuple[Word, ...]:
    """As 32 bits at a time, without those that may be anything."""
    bits = 32 if version == 4 else 128
    begin = (12 if source else 16) if version == 4 else (8 if source else 24)
    mask = ((1 << length) - 1) << (bits - length)
    words = []
    for at in range(0, bits, 32):
        part = (mask >> (bits - 32 - at)) & 0xFFFFFFFF
        if part:
            words.append(((number >> (bits - 32 - at)) & part, part, begin + at // 8))
    return tuple(words)
