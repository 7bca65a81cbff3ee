"""Tenants are held to their rates, each by its endpoint or its addresses, and nobody else is.

What passes at a rate cannot be faster than it, however loaded this machine is; who is not limited
is told by what was counted, not by the clock.
"""

from __future__ import annotations

import pytest

from tests.network.machine import Machine

MIB = 1 << 20
COUNT = MIB
ODD = 10_000  # bytes: IPv6 looks for listeners in packets of that form (rfc3810)
MBIT = 16  # 2 MB/s
# What passes without waiting: a burst, and one packet (of 64 KiB, as the kernel keeps them) that
# may still begin when the burst is used up.
FREELY = 2 * 65536
LEAST_S = 0.9 * (COUNT - FREELY) / (MBIT * 125_000)

NETWORK = f"""
[[bridge]]
name = "gpupool0"
addresses = ["10.77.0.1/24", "fd77::1/64"]

[[veth]]
name = "gp-acme"
namespace = "acme"
peer_addresses = ["10.77.0.2/24", "fd77::2/64"]
bridge = "gpupool0"

[[veth]]
name = "gp-rival"
namespace = "rival"
peer_addresses = ["10.77.0.3/24", "fd77::3/64"]
bridge = "gpupool0"

[[limit]]
tenant = "acme"
interface = "gpupool0"
endpoints = ["tls://10.77.0.1:9177", "tcp://[::]:9178"]
to_mbit = {MBIT}
from_mbit = {MBIT}

[[limit]]
tenant = "rival"
interface = "gpupool0"
clients = ["10.77.0.3/32", "fd77::3/128"]
to_mbit = {MBIT}
from_mbit = {MBIT}
"""


@pytest.fixture
def machine(own: Machine) -> Machine:
    """With limits."""
    own.apply(NETWORK)
    return own


@pytest.mark.parametrize("to_client", [True, False], ids=["to", "from"])
@pytest.mark.parametrize(("host", "port"), [("10.77.0.1", 9177), ("fd77::1", 9178)])
def test_an_endpoint_is_limited(machine: Machine, host: str, port: int, *, to_client: bool) -> None:
    took_s = machine.transfer_s(host, port, COUNT, to_client=to_client, namespace="acme")
    assert took_s >= LEAST_S
    flows = machine.flows()
    there, back = ("to", "from") if to_client else ("from", "to")
    assert COUNT <= flows["acme", there] < 2 * COUNT
    assert 0 < flows["acme", back] < COUNT / 2  # what answers
    assert flows["rival", "to"] < COUNT / 4
    assert flows["", "to"] + flows["", "from"] < ODD


@pytest.mark.parametrize("to_client", [True, False], ids=["to", "from"])
@pytest.mark.parametrize("host", ["10.77.0.1", "fd77::1"])
def test_clients_are_limited_whatever_they_dial(
    machine: Machine, host: str, *, to_client: bool
) -> None:
    took_s = machine.transfer_s(host, 5000, COUNT, to_client=to_client, namespace="rival")
    assert took_s >= LEAST_S
    flows = machine.flows()
    assert COUNT <= flows["rival", "to" if to_client else "from"] < 2 * COUNT
    assert flows["acme", "to"] + flows["acme", "from"] == 0


def test_who_is_nobodys_is_free(machine: Machine) -> None:
    for to_client in (True, False):
        machine.transfer_s("10.77.0.1", 5000, COUNT, to_client=to_client, namespace="acme")
        machine.transfer_s("fd77::1", 9177, COUNT, to_client=to_client, namespace="acme")
    flows = machine.flows()
    assert flows["acme", "to"] + flows["acme", "from"] == 0
    assert flows["", "to"] + flows["", "from"] < ODD
    sent = machine.call("tc", "-s", "qdisc", "show", "dev", "gpupool0")
    assert int(sent.split("direct_packets_stat ")[1].split()[0]) > 0


@pytest.mark.parametrize(
    ("host", "odd"), [("10.77.0.1", "options"), ("fd77::1", "extension")], ids=["ipv4", "ipv6"]
)
def test_headers_that_hide_the_port_gain_nothing(machine: Machine, host: str, odd: str) -> None:
    count = MIB // 4
    took_s = machine.transfer_s(
        host, 9177 if odd == "options" else 9178, count, to_client=False, namespace="acme", odd=odd
    )
    assert took_s >= 0.9 * (count - FREELY) / 125_000
    flows = machine.flows()
    assert flows["", "from"] >= count
    assert flows["acme", "from"] < ODD  # the end of it, which has no options


def test_tenants_of_one_bridge_do_not_reach_one_another(machine: Machine) -> None:
    dial = "import socket; socket.create_connection(('10.77.0.3', 9), timeout=1.5)"
    said = machine.call("python3", "-c", dial, namespace="acme", check=False)
    # Refused would come from rival's own kernel.
    assert "timed out" in said or "No route to host" in said
