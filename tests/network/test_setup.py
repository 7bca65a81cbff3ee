"""`gpupool network` on a machine of the test's own: what it makes, leaves alone and takes back."""

from __future__ import annotations

import json

import pytest

from tests.network.machine import Machine

WHOLE = """
[[bridge]]
name = "gpupool0"
addresses = ["10.77.0.1/24", "fd77::1/64"]
ports = ["card"]
mtu = 1400

[[veth]]
name = "gp-acme"
namespace = "acme"
peer_addresses = ["10.77.0.2/24", "fd77::2/64"]
bridge = "gpupool0"
mtu = 1400

[[veth]]
name = "gp-rival"
namespace = "rival"
peer = "gpu0"
addresses = ["10.78.0.1/30"]
peer_addresses = ["10.78.0.2/30"]

[[limit]]
tenant = "acme"
interface = "gpupool0"
endpoints = ["tls://10.77.0.1:9177", "tls://[fd77::1]:9177"]
to_mbit = 80
from_mbit = 40

[[limit]]
tenant = "rival"
interface = "gp-rival"
clients = ["10.78.0.0/30"]
from_mbit = 20000
"""
THINGS = [
    "bridge gpupool0",
    "veth gp-acme",
    "veth gp-rival",
    "limits at gp-rival",
    "limits at gpupool0",
]


def all_are(state: str) -> dict[str, str]:
    """Every thing of WHOLE in that state."""
    return dict.fromkeys(THINGS, state)


@pytest.fixture
def machine(own: Machine) -> Machine:
    """With a card."""
    own.call("ip", "link", "add", "card", "type", "veth", "peer", "name", "wire")
    own.call("ip", "link", "set", "card", "up")
    return own


def test_made_once_and_taken_back(machine: Machine) -> None:
    before = machine.state()
    assert machine.apply(WHOLE, "--check") == all_are("made")
    assert machine.state() == before  # --check does nothing
    assert machine.apply(WHOLE) == all_are("made")
    after = machine.state()
    assert machine.apply(WHOLE) == all_are("ok")
    assert machine.state() == after
    assert "10.77.0.1/24" in machine.call("ip", "-br", "addr", "show", "gpupool0")
    assert "mtu 1400" in machine.call("ip", "link", "show", "gpupool0", namespace="acme")
    assert "10.78.0.2/30" in machine.call("ip", "-br", "addr", "show", "gpu0", namespace="rival")
    assert "master gpupool0" in machine.call("ip", "link", "show", "card")
    machine.transfer_s("10.77.0.1", 5000, 1, to_client=True, namespace="acme")
    machine.transfer_s("fd77::1", 5000, 1, to_client=False, namespace="acme")
    code, said = machine.network("remove")
    assert code == 0
    assert {line.split(maxsplit=1)[0] for line in said.splitlines()} == {"removed"}
    assert machine.state() == before
    assert machine.network("remove") == (0, "")


def test_what_differs_is_put_right(machine: Machine) -> None:
    machine.apply(WHOLE)
    machine.call("ip", "addr", "add", "10.99.0.1/24", "dev", "gpupool0")
    machine.call("ip", "link", "set", "gp-acme", "nomaster")
    machine.call("ip", "link", "del", "gpu0", namespace="rival")  # and so its other end
    found = machine.apply(WHOLE)
    gone = [what for what in found if what.startswith("ifb ")]  # that was the veth's
    assert [found[what] for what in gone] == ["removed"]
    assert found["bridge gpupool0"] == found["veth gp-acme"] == "changed"
    assert found["veth gp-rival"] == found["limits at gp-rival"] == "made"
    assert "10.99.0.1" not in machine.call("ip", "addr", "show", "gpupool0")
    assert machine.apply(WHOLE) == all_are("ok")


@pytest.mark.parametrize(
    "damage",
    [
        "tc qdisc del dev gpupool0 root",
        "tc qdisc del dev gpupool0 ingress",
        "tc class change dev gpupool0 parent 6770: classid 6770:10 htb rate 1gbit",
        "tc filter del dev gpupool0 parent 6770: pref 26480",
        "ip link set gp-in-3 down || ip link set gp-in-4 down || ip link set gp-in-5 down",
    ],
)
def test_limits_that_somebody_has_changed(machine: Machine, damage: str) -> None:
    machine.apply(WHOLE)
    machine.call("sh", "-c", damage)
    assert machine.apply(WHOLE) == {**all_are("ok"), "limits at gpupool0": "changed"}
    assert machine.apply(WHOLE) == all_are("ok")


def test_what_the_file_no_longer_has_goes(machine: Machine) -> None:
    machine.apply(WHOLE)
    less = WHOLE[: WHOLE.index('[[veth]]\nname = "gp-rival"')]
    assert machine.apply(less) == {
        "limits at gp-rival": "removed",
        "limits at gpupool0": "removed",
        "veth gp-rival": "removed",
        "bridge gpupool0": "ok",
        "veth gp-acme": "ok",
    }
    assert "htb" not in machine.call("tc", "qdisc")
    assert "gpu0" not in machine.call("ip", "-br", "link", namespace="rival")


def test_other_rates(machine: Machine) -> None:
    machine.apply(WHOLE)
    found = machine.apply(WHOLE.replace("to_mbit = 80", "to_mbit = 100000"))
    assert found == {**all_are("ok"), "limits at gpupool0": "changed"}
    code, said = machine.network("show", "--json")
    assert code == 0
    rates = {(one["tenant"], one["direction"]): one["mbit"] for one in json.loads(said)["limits"]}
    assert rates[("acme", "to")] == 100000  # more than 32 bits of bytes a second
    assert rates[("acme", "from")] == 40
    assert machine.apply(WHOLE.replace("to_mbit = 80", "to_mbit = 100000")) == all_are("ok")


@pytest.mark.parametrize(
    ("before", "text", "said"),
    [
        (
            "ip link add gpupool0 type bridge",
            WHOLE,
            "there is an interface gpupool0 that gpupool has not made",
        ),
        ("ip addr add 10.5.0.1/24 dev card", WHOLE, "card has addresses, which would stop to work"),
        ("ip link del card", WHOLE, "there is no interface card"),
        ("ip netns del acme", WHOLE, "no network namespace acme; make it first"),
        (
            "ip netns exec acme ip link add gpupool0 type veth peer name x",
            WHOLE,
            "the kernel refuses it: File exists",
        ),
        (
            "tc qdisc add dev lo root handle 5: htb",
            '[[limit]]\ntenant = "a"\ninterface = "lo"\nclients = ["10.0.0.0/8"]\nto_mbit = 1',
            "lo has a qdisc of somebody else's (htb)",
        ),
        (
            "true",
            '[[limit]]\ntenant = "a"\ninterface = "eth7"\nclients = ["10.0.0.0/8"]\nto_mbit = 1',
            "there is no interface eth7",
        ),
    ],
)
def test_what_is_somebody_elses_stays(machine: Machine, before: str, text: str, said: str) -> None:
    machine.call("sh", "-c", before)
    state = machine.call("tc", "qdisc"), machine.call("ip", "addr", "show", "card", check=False)
    code, told = machine.apply_anyhow(text)
    assert code == 1
    failed = [one["detail"] for one in json.loads(told)["steps"] if one["state"] == "failed"]
    assert any(said in one for one in failed), failed
    machine.network("remove")
    now = machine.call("tc", "qdisc"), machine.call("ip", "addr", "show", "card", check=False)
    assert now[0] == state[0]
    if "card has" in said:
        assert now == state


def test_other_peoples_filters_stay(machine: Machine) -> None:
    machine.call("ip", "link", "set", "card", "up")
    machine.call("tc", "qdisc", "add", "dev", "card", "clsact")
    theirs = "tc filter add dev card ingress pref 5 protocol ip u32 match u32 7 7 flowid 1:7"
    machine.call(*theirs.split())
    before = machine.state()
    text = '[[limit]]\ntenant = "a"\ninterface = "card"\nclients = ["10.0.0.0/8"]\nfrom_mbit = 1'
    assert machine.apply(text) == {"limits at card": "made"}
    assert machine.apply(text) == {"limits at card": "ok"}
    assert "flowid 1:7" in machine.call("tc", "filter", "show", "dev", "card", "ingress")
    machine.network("remove")
    assert machine.state() == before
