"""A network of a test's own: a namespace with one tap device, to which a guest's card is plugged.

Programs started within `entered` are on the host's end of it, hostd and QEMU among them; unix
sockets reach them from outside as ever. The namespace goes with its last program.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.vm.kernel import MissingError
from tests.vm.machine import Machine

HOST, GUEST = "10.77.0.1", "10.77.0.2"
TAP = "tap0"
_CLONE_NEWNET = 0x40000000  # sched.h
_SET_UP = (
    ("ip", "link", "set", "lo", "up"),
    ("ip", "tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"),
    ("ip", "address", "add", f"{HOST}/24", "dev", TAP),
    ("ip", "link", "set", TAP, "up"),
)


class Network:
    """As long as `open_network`."""

    def __init__(self, namespace: int) -> None:
        self._namespace = namespace

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and what it starts, is in the namespace."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _check(_libc().setns(self._namespace, _CLONE_NEWNET))
            yield
        finally:
            _check(_libc().setns(before, _CLONE_NEWNET))
            os.close(before)

    def card(self, **properties: str) -> list[str]:
        """QEMU's words for a card on it: virtio, with what a tap device lets it offer."""
        words = "".join(f",{name}={value}" for name, value in properties.items())
        tap = f"tap,id=net,ifname={TAP},script=no,downscript=no,vnet_hdr=on"
        return ["-netdev", tap, "-device", f"virtio-net-pci,netdev=net,romfile={words}"]

    def plug_in(self, machine: Machine) -> None:
        """Gives the guest its address."""
        busybox = "/run/test/busybox"
        done = machine.run(
            [
                "/bin/sh",
                "-c",
                f"{busybox} ip link set lo up && {busybox} ip address add {GUEST}/24 dev eth0 && "
                f"{busybox} ip link set eth0 up",
            ]
        )
        assert done.code == 0, machine.explain(done.err)


@contextlib.contextmanager
def open_network() -> Iterator[Network]:
    """Makes one. Raises MissingError where there is no right to, or no tap device."""
    if shutil.which("ip") is None:
        raise MissingError("ip is missing (Debian: iproute2)")
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        raise MissingError("a tap device needs root and /dev/net/tun")
    made: list[int | OSError | subprocess.CalledProcessError] = []

    def make() -> None:
        try:
            _check(_libc().unshare(_CLONE_NEWNET))
            for command in _SET_UP:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
        except (OSError, subprocess.CalledProcessError) as problem:
            made.append(problem)

    thread = threading.Thread(target=make)  # its namespace is not the test's
    thread.start()
    thread.join()
    (found,) = made
    if not isinstance(found, int):
        said = found.stderr if isinstance(found, subprocess.CalledProcessError) else ""
        raise MissingError(f"no network namespace with a tap device here: {found} {said}".strip())
    try:
        yield Network(found)
    finally:
        os.close(found)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
