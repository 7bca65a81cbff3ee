"""Which packets count for whom, decided as the kernel's u32 does it, on packets made here."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from gpupool.hostd.core.network import Door, RateLimit
from gpupool.hostd.core.network_shape import FREE, Rule, Shape, shape

HOST4, HOST6 = "10.0.0.7", "fd00::7"
CLIENT4, CLIENT6 = "10.1.2.3", "fd01::3"
ODD = 1
ACME, RIVAL, BACK = 16, 17, 18
LIMITS = (
    RateLimit(
        "acme",
        "eth0",
        doors=(
            Door(9177, ip_address(HOST4), (4,)),
            Door(9177, ip_address(HOST6), (6,)),
            Door(9200, None, (4, 6)),
        ),
        to_mbit=10,
        from_mbit=20,
    ),
    RateLimit(
        "rival",
        "eth0",
        clients=(ip_network("10.2.0.0/15"), ip_network("fd02::/33")),
        to_mbit=30,
        from_mbit=0,
    ),
    RateLimit("back", "eth0", doors=(Door(9300, None, (4,)),), from_mbit=5),
)
OUT, IN = shape(LIMITS, outward=True), shape(LIMITS, outward=False)


def fits(rule: Rule, packet: bytes) -> bool:
    """As net/sched/cls_u32.c: words behind the packet's end fit nothing."""
    if packet[0] >> 4 != rule.version:
        return False
    for value, mask, offset in rule.words:
        if offset + 4 > len(packet):
            return False
        (word,) = struct.unpack_from(">I", packet, offset)
        if (word ^ value) & mask:
            return False
    return True


def minor(found: Shape, packet: bytes) -> int:
    """The class of a packet."""
    return next((rule.minor for rule in found.rules if fits(rule, packet)), FREE)


def tcp(source: int, target: int) -> bytes:
    return struct.pack(">HHIIHHHH", source, target, 1, 2, 0x5010, 100, 0, 0)


def ipv4(
    source: str, target: str, rest: bytes, *, protocol: int = 6, words: int = 5, fragment: int = 0
) -> bytes:
    header = struct.pack(
        ">BBHHHBBH4s4s",
        0x40 | words,
        0,
        20 + len(rest),
        7,
        fragment,
        64,
        protocol,
        0,
        IPv4Address(source).packed,
        IPv4Address(target).packed,
    )
    return header + bytes(4 * (words - 5)) + rest


def ipv6(source: str, target: str, rest: bytes, following: int = 6) -> bytes:
    addresses = IPv6Address(source).packed + IPv6Address(target).packed
    return struct.pack(">IHBB", 6 << 28, len(rest), following, 64) + addresses + rest


def test_an_endpoints_packets() -> None:
    assert minor(OUT, ipv4(HOST4, CLIENT4, tcp(9177, 40000))) == ACME
    assert minor(IN, ipv4(CLIENT4, HOST4, tcp(40000, 9177))) == ACME
    assert minor(OUT, ipv6(HOST6, CLIENT6, tcp(9177, 40000))) == ACME
    assert minor(IN, ipv6(CLIENT6, HOST6, tcp(40000, 9177))) == ACME
    # Other ports, other addresses of the host, the other way round, UDP.
    assert minor(OUT, ipv4(HOST4, CLIENT4, tcp(22, 40000))) == FREE
    assert minor(OUT, ipv4("10.0.0.8", CLIENT4, tcp(9177, 40000))) == FREE
    assert minor(OUT, ipv4(HOST4, CLIENT4, tcp(40000, 9177))) == FREE
    assert minor(IN, ipv6(CLIENT6, "fd00::8", tcp(40000, 9177))) == FREE
    assert minor(IN, ipv4(CLIENT4, HOST4, tcp(40000, 9177), protocol=17)) == FREE
    assert minor(IN, ipv6(CLIENT6, HOST6, tcp(40000, 9177), 17)) == FREE


def test_an_endpoint_at_every_address() -> None:
    for address in (HOST4, "192.0.2.1"):
        assert minor(OUT, ipv4(address, CLIENT4, tcp(9200, 40000))) == ACME
    assert minor(IN, ipv6(CLIENT6, "2001:db8::1", tcp(40000, 9200))) == ACME


@given(st.integers(0, 0xFFFFFFFF), st.binary(min_size=20, max_size=40))
def test_a_network_of_clients(number: int, rest: bytes) -> None:
    client = str(IPv4Address(number))
    theirs = IPv4Address(client) in ip_network("10.2.0.0/15")
    packet = ipv4("192.0.2.9", client, rest, protocol=17)
    assert (minor(OUT, packet) == RIVAL) == theirs
    assert minor(IN, ipv4(client, "192.0.2.9", rest, protocol=17)) == FREE  # that is not limited
    assert minor(OUT, ipv6(HOST6, "fd02::1", rest, 17)) == RIVAL
    assert minor(OUT, ipv6(HOST6, "fd02:0:8000::1", rest, 17)) == FREE


def test_a_tenant_whose_other_direction_is_limited() -> None:
    assert minor(OUT, ipv4(HOST4, "10.2.0.1", tcp(9300, 40000))) == FREE
    assert minor(IN, ipv4("10.2.0.1", HOST4, tcp(40000, 9300))) == BACK
    assert [one.tenant for one in OUT.classes] == ["acme", "rival", ""]
    assert [one.tenant for one in IN.classes] == ["acme", "back", ""]


@given(
    st.integers(5, 15),
    st.integers(0, 0xFFFF),
    st.sampled_from([9177, 9200, 22]),
    st.sampled_from([HOST4, "10.0.0.8"]),
)
def test_no_header_of_ipv4_hides_the_port(words: int, fragment: int, port: int, host: str) -> None:
    """TCP to a limited port is counted in one of two classes, however it is packed."""
    packet = ipv4(CLIENT4, host, tcp(40000, port), words=words, fragment=fragment)
    plain = words == 5 and fragment & 0x1FFF == 0
    limited = port == 9200 or (port == 9177 and host == HOST4)
    if not plain:
        assert minor(IN, packet) == ODD
    else:
        assert minor(IN, packet) == (ACME if limited else FREE)


def test_no_header_of_ipv6_hides_the_port() -> None:
    for header in (0, 43, 44, 51, 60, 135, 139, 140):
        packet = ipv6(CLIENT6, HOST6, bytes(8) + tcp(40000, 9177), header)
        assert minor(IN, packet) == ODD
    for header in (17, 50, 58, 59):  # UDP, encrypted, ICMP, nothing
        assert minor(IN, ipv6(CLIENT6, HOST6, bytes(28), header)) == FREE


def test_odd_packets_matter_where_endpoints_are_limited() -> None:
    clients = shape(LIMITS[1:2], outward=True)
    assert [one.tenant for one in clients.classes] == ["rival"]
    assert minor(clients, ipv4(HOST4, CLIENT4, tcp(1, 2), words=7)) == FREE
    own = (RateLimit("a", "e", doors=(Door(1, ip_address(HOST4), (4,)),), from_mbit=1),)
    odd = ipv4(CLIENT4, HOST4, tcp(1, 2), words=7)
    assert minor(shape(own, outward=False), odd) == ODD
    assert minor(shape(own, outward=False), ipv4(CLIENT4, "10.9.9.9", tcp(1, 2), words=7)) == FREE


def test_everybody_is_a_network_too() -> None:
    everybody = RateLimit("all", "eth0", clients=(ip_network("0.0.0.0/0"),), to_mbit=1)
    assert minor(shape([everybody], outward=True), ipv4(HOST4, CLIENT4, tcp(1, 2))) == ACME
    assert shape([everybody], outward=False) == Shape()


def test_what_differs_has_another_digest() -> None:
    assert OUT.digest != IN.digest
    assert OUT.digest == shape(LIMITS, outward=True).digest
    assert OUT.digest != shape(LIMITS[:2], outward=True).digest
