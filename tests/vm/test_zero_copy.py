"""Sends by reference (MSG_ZEROCOPY) that the kernel truly makes: from a guest over its virtio card.

Of all paths that a test has without a second machine this is the one where they are true: the
guest's kernel hands the card pages of the program's window, and says that it copied nothing. The
host's end of a tap device copies, as loopback does (tests/e2e/test_zero_copy.py).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Host, end_host, make_host
from tests.vm import network
from tests.vm.kernel import Kernel, MissingError
from tests.vm.machine import Machine

MIB = 1 << 20
PORT = 9177
COPIES = 8  # of each kind in `COPYING`
# The same buffers with other data each time, overwritten as soon as the copy has returned.
COPYING = f"""
import ctypes, os
from ctypes import c_uint64, c_void_p
from tests.guest.cuda import Driver
size = 4 << 20
size_t = ctypes.c_size_t(size)
driver = Driver()
blocks = [driver.alloc(size) for _ in range(2)]
pinned, pageable = driver.pinned(size), ctypes.create_string_buffer(size)
noise = os.urandom(size + {COPIES})
for turn in range({COPIES}):
    wanted = noise[turn : turn + size], bytes([turn]) * size
    for block, buffer, data in zip(blocks, (pinned, ctypes.addressof(pageable)), wanted):
        ctypes.memmove(buffer, data, size)
        driver.call("cuMemcpyHtoD_v2", c_uint64(block), c_void_p(buffer), size_t)
        ctypes.memset(buffer, 0xEE, size)
    for block, data in zip(blocks, wanted):
        assert driver.download(block, size) == data, turn
print("same")
"""
SENT = 2 * COPIES * 4 * MIB


@dataclass
class Guest:
    """One with a network card; programs in it reach hostd over TCP."""

    host: Host
    machine: Machine
    network: network.Network

    def copies(self, **variables: str) -> dict[str, int]:
        """What a program in it counted that checks its data."""
        environment = {
            "LD_LIBRARY_PATH": str(self.host.native / "lib" / "guest"),
            "GPUPOOL_ENDPOINT": f"tcp://{network.HOST}:{PORT}",
            "GPUPOOL_TOKEN_FILE": str(self.host.folder / "token"),
            "GPUPOOL_STATISTICS_FILE": "/tmp/statistics.json",  # noqa: S108 (in the guest)
        }
        out = self.machine.python(COPYING, {**environment, **variables})
        assert out == "same\n"
        written = self.machine.run(["cat", environment["GPUPOOL_STATISTICS_FILE"]]).out
        counted: dict[str, int] = json.loads(written)["zero_copy"]
        return counted


@pytest.fixture(scope="module")
def guest(guest_kernel: Kernel) -> Iterator[Guest]:
    try:
        with (
            network.open_network() as net,
            net.entered(),
            tempfile.TemporaryDirectory(prefix="gpupool-vm-") as name,
        ):
            yield from _guest(Path(name), guest_kernel, net)
    except MissingError as problem:
        pytest.skip(str(problem))


def _guest(folder: Path, kernel: Kernel, net: network.Network) -> Iterator[Guest]:
    (folder / "qemu").mkdir()
    listen = f'[[endpoint]]\nlisten = "tcp://{network.HOST}:{PORT}"\n'
    host = make_host(folder, more=f'{listen}insecure = true\ntoken_file = "{folder}/token"\n')
    machine = Machine(folder / "qemu", kernel, card=net.card())
    try:
        machine.start()
        machine.wait_ready()
        net.plug_in(machine)
        yield Guest(host, machine, net)
    finally:
        machine.kill()
        end_host(host)


@pytest.mark.parametrize("connections", ["1", "4"])
def test_a_guests_data_goes_by_reference(guest: Guest, connections: str) -> None:
    counted = guest.copies(GPUPOOL_TCP_CONNECTIONS=connections)
    assert counted["copied_after_all"] == 0
    # There is room for so many notices only (net.core.optmem_max); a send beyond is a copy.
    assert counted["bytes"] > SENT * 3 // 4, counted
    assert counted["bytes"] == SENT or counted["refused"] > 0


CAPTURE = """
import socket
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)):  # ETH_P_ALL
    print("captures", flush=True)
    input()
"""


def test_who_captures_packets_has_them_copied(guest: Guest) -> None:
    """As tcpdump does: the kernel makes a copy for it first, says so, and we cease to ask."""
    capture = guest.machine.begin([sys.executable, "-c", CAPTURE])
    assert capture.read_line() == "captures", capture.err
    counted = guest.copies()
    capture.write("\n")
    assert capture.wait() == 0
    assert 0 < counted["copied_after_all"] <= counted["bytes"] < SENT // 2, counted


# ETHTOOL_SSG of linux/ethtool.h, by SIOCETHTOOL.
SET_SCATTER_GATHER = """
import ctypes, fcntl, socket, struct, sys
words = ctypes.create_string_buffer(struct.pack("II", 0x19, int(sys.argv[1])))
request = struct.pack("16sP", b"eth0", ctypes.addressof(words))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8946, request.ljust(40, bytes(1)))
"""


def scatter_gather(machine: Machine, on: bool) -> None:
    """Whether the card may gather a packet from several places; new connections heed it."""
    command = [sys.executable, "-c", SET_SCATTER_GATHER, str(int(on))]
    assert machine.run(command).code == 0


def test_a_card_that_cannot_gather_gets_right_data(guest: Guest) -> None:
    """The kernel cuts and joins its packets itself then, a copy that it mostly does not tell of."""
    scatter_gather(guest.machine, False)
    try:
        counted = guest.copies()
    finally:
        scatter_gather(guest.machine, True)
    assert counted["bytes"] > 0, counted
