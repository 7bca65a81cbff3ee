"""network.toml: what may stand there, and what its documentation says."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from gpupool.hostd import config_network
from gpupool.hostd.config_network import NETWORK_KEYS, NetworkConfigError, parse
from gpupool.hostd.core.network import Door, Network
from gpupool.wire.settings import Key
from tests.tree import ROOT

DOCUMENT = ROOT / "docs" / "network.md"
LIMIT: dict[str, Any] = {
    "tenant": "acme",
    "interface": "eth0",
    "clients": ["10.1.0.0/16"],
    "to_mbit": 5,
}


@pytest.mark.parametrize("key", NETWORK_KEYS, ids=lambda key: key.name)
def test_every_key_is_documented_with_its_default(key: Key) -> None:
    assert key.check(key.default) is None
    row = re.search(
        rf"^\| `{re.escape(key.name)}` \| `(.*?)` \| (.*?) \| (.*) \|$",
        DOCUMENT.read_text(),
        re.MULTILINE,
    )
    assert row is not None, f"{key.name} is missing in {DOCUMENT.name}"
    assert row.groups() == (key.default_text, key.allowed, key.meaning)


def test_the_examples_in_the_documentation_are_valid(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.S)
    networks = [one for one in examples if "[[limit]]" in one or "[[bridge]]" in one]
    assert networks
    for example in networks:
        (tmp_path / "network.toml").write_text(example)
        config_network.load(tmp_path / "network.toml")


def test_nothing_is_a_network() -> None:
    assert parse({}) == Network()


def test_endpoints_and_clients() -> None:
    endpoints = ["tls://10.0.0.7:9177", "tcp://[::1]:9", "tls://0.0.0.0:1", "tls://[::]:2"]
    given = {**LIMIT, "endpoints": endpoints, "clients": ["fd00::/8", "10.0.0.1"]}
    (limit,) = parse({"limit": [given]}).limits
    assert limit.doors == (
        Door(9177, ip_address("10.0.0.7"), (4,)),
        Door(9, ip_address("::1"), (6,)),
        Door(1, None, (4,)),
        Door(2, None, (4, 6)),
    )
    assert limit.clients == (ip_network("fd00::/8"), ip_network("10.0.0.1/32"))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"bridges": []}, r"bridges: no such section; known are \[\[bridge\]\]"),
        ({"bridge": {"name": "a"}}, r"bridge: given .* one or more sections \[\[bridge\]\]"),
        (
            {"bridge": [{"names": "a"}]},
            r"bridge\[0\].names: no such key; known are name, addresses",
        ),
        ({"bridge": [{"name": "a", "mtu": -1}]}, r"bridge\[0\].mtu: given -1, allowed is a whole"),
        ({"bridge": [{}]}, r"bridge.name '': allowed are 1 to 15 letters"),
        ({"bridge": [{"name": "a" * 16}]}, "allowed are 1 to 15 letters"),
        ({"bridge": [{"name": "a/b"}]}, "allowed are 1 to 15 letters"),
        ({"bridge": [{"name": "gp-in-3"}]}, "not beginning with 'gp-in-'"),
        ({"bridge": [{"name": "a", "addresses": ["10.0.0.1"]}]}, "given '10.0.0.1', allowed is an"),
        ({"bridge": [{"name": "a", "addresses": ["10.0.0.1/33"]}]}, "with its length of prefix"),
        ({"bridge": [{"name": "a", "ports": [""]}]}, "bridge a: port ''"),
        ({"bridge": [{"name": "a"}, {"name": "a"}]}, "a is the name of two"),
        ({"veth": [{"name": "a", "namespace": ""}]}, "veth a: namespace: given ''"),
        ({"veth": [{"name": "a", "namespace": "../x"}]}, "veth a: namespace: given '../x'"),
        (
            {"veth": [{"name": "a", "namespace": "b", "bridge": "c", "addresses": ["1.1.1.1/8"]}]},
            "the host's end is in bridge c, so its addresses belong to that",
        ),
        ({"limit": [{**LIMIT, "tenant": ""}]}, "limit.tenant: given nothing"),
        ({"limit": [{**LIMIT, "to_mbit": 0}]}, "limits nothing; give to_mbit, from_mbit, or both"),
        ({"limit": [{**LIMIT, "clients": []}]}, "name the tenant's endpoints, its clients'"),
        ({"limit": [LIMIT, LIMIT]}, "limit of acme: there are two at eth0"),
        (
            {"limit": [LIMIT, {**LIMIT, "tenant": "b"}]},
            "limit of b: 10.1.0.0/16 is acme's already",
        ),
        ({"limit": [{**LIMIT, "clients": ["10.1.0.1/16"]}]}, "has host bits set"),
        ({"limit": [{**LIMIT, "endpoints": ["tls://gpu7:1"]}]}, "a name is not"),
        ({"limit": [{**LIMIT, "endpoints": ["unix:/x"]}]}, "allowed is tls:// or tcp://"),
        ({"limit": [{**LIMIT, "endpoints": ["tls://10.0.0.1:0"]}]}, "no port of its own"),
        ({"limit": [{**LIMIT, "to_mbit": 1000001}]}, "allowed is a whole number from 0 to 1000000"),
    ],
)
def test_what_is_wrong(document: dict[str, Any], said: str) -> None:
    with pytest.raises(NetworkConfigError, match=said):
        parse(document)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NetworkConfigError, match=r"No such file.*docs/network.md"):
        config_network.load(tmp_path / "network.toml")
    (tmp_path / "network.toml").write_text("a = ")
    with pytest.raises(NetworkConfigError, match="is no TOML"):
        config_network.load(tmp_path / "network.toml")
    (tmp_path / "network.toml").write_text("a = 1")
    with pytest.raises(NetworkConfigError, match=r"network.toml: a: no such section"):
        config_network.load(tmp_path / "network.toml")
