"""A machine for a test: a network namespace of its own, in which others have names as on a host."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tree import ROOT

_BEGIN = """
mount -t tmpfs none /run && mkdir /run/netns && ip link set lo up || exit 1
for name in "$@"; do ip netns add "$name" && ip -n "$name" link set lo up || exit 1; done
exec "$PYTHON" -m tests.network.driver
"""
# What may be missing in a kernel, and how to ask.
_PARTS = {
    "bridge": "ip link add test type bridge",
    "veth": "ip link add test type veth peer name other",
    "ifb": "ip link add test type ifb",
    "sch_htb": "tc qdisc add dev lo root handle 1: htb",
    "sch_ingress": "tc qdisc add dev lo ingress",
    "cls_u32": "tc qdisc add dev lo root handle 1: htb && "
    "tc filter add dev lo parent 1: protocol ip u32 match u32 0 0 flowid 1:0",
    "act_mirred": "tc qdisc add dev lo ingress && tc filter add dev lo parent ffff: protocol ip "
    "u32 match u32 0 0 action mirred egress redirect dev lo",
}

# One connection: the server sends or takes so many bytes. The client says how long all of it took,
# from before there was a connection: no byte can have passed earlier.
_SERVE = """
import socket, sys
host, port, count, sends = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "send"
family = socket.AF_INET6 if ":" in host else socket.AF_INET
with socket.create_server((host, port), family=family) as listener:
    listener.settimeout(20)
    print("listening", flush=True)
    with listener.accept()[0] as connection:
        connection.settimeout(120)
        if sends:
            connection.sendall(bytes(count))
            connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass
"""
_CONNECT = """
import socket, sys, time
host, port, count, sends = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "send"
odd = sys.argv[5]
connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
connection.settimeout(120)
if odd == "options":  # four bytes of "no operation"
    connection.setsockopt(socket.IPPROTO_IP, 4, bytes([1, 1, 1, 0]))
if odd == "extension":  # a destination option of padding
    connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
begin = time.monotonic()
connection.connect((host, port))
if sends:
    connection.sendall(bytes(count))
    connection.shutdown(socket.SHUT_WR)
received = 0
while piece := connection.recv(1 << 16):
    received += len(piece)
print(time.monotonic() - begin)
assert received == (0 if sends else count)
"""


def missing() -> str:
    """What this machine or its kernel lacks for these tests; empty: nothing."""
    for program in ("unshare", "nsenter", "ip", "tc"):
        if shutil.which(program) is None:
            return f"{program} is missing (Debian: iproute2, util-linux)"
    if os.geteuid() != 0:
        return "network namespaces with names need root"
    for part, command in _PARTS.items():
        done = subprocess.run(
            ["unshare", "-n", "sh", "-c", command], capture_output=True, text=True, timeout=20
        )
        if done.returncode:
            return f"no network namespace with {part} here: {done.stderr.strip()}"
    return ""


@dataclass
class Machine:
    """As long as the block of `machine`."""

    holder: subprocess.Popen[str]
    folder: Path

    def inside(self, namespace: str = "") -> list[str]:
        """What begins the command line of a program of the machine, or of a namespace in it."""
        root = f"/proc/{self.holder.pid}"
        if namespace:
            return ["nsenter", f"--net={root}/root/run/netns/{namespace}"]
        return ["nsenter", f"--net={root}/ns/net", f"--mount={root}/ns/mnt"]

    def call(self, *words: str, namespace: str = "", check: bool = True) -> str:
        """Runs a program; what it prints."""
        done = subprocess.run(
            [*self.inside(namespace), *words], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def network(self, verb: str, *words: str) -> tuple[int, str]:
        """`gpupool network`: exit code, and what it said."""
        config = ["--config", str(self.folder / "network.toml")] if verb != "remove" else []
        assert self.holder.stdin is not None
        assert self.holder.stdout is not None
        self.holder.stdin.write(json.dumps([verb, *config, *words]) + "\n")
        self.holder.stdin.flush()
        code, said = json.loads(self.holder.stdout.readline())
        return int(code), str(said)

    def apply(self, text: str, *words: str) -> dict[str, str]:
        """With that network.toml; the state of each thing. Fails where one could not be had."""
        code, said = self.apply_anyhow(text, *words)
        assert code == 0, said
        return {step["what"]: step["state"] for step in json.loads(said)["steps"]}

    def apply_anyhow(self, text: str, *words: str) -> tuple[int, str]:
        """The same, whatever comes of it."""
        (self.folder / "network.toml").write_text(text)
        return self.network("apply", "--json", *words)

    def flows(self) -> dict[tuple[str, str], int]:
        """Bytes that have passed, by tenant and direction."""
        code, said = self.network("show", "--json")
        assert code == 0, said
        return {
            (one["tenant"], one["direction"]): one["bytes"] for one in json.loads(said)["limits"]
        }

    def state(self) -> Any:
        """Everything that these tests may change, without what counts."""
        links = json.loads(self.call("ip", "-j", "addr"))
        kept = ("ifname", "mtu", "operstate", "master", "link_type")
        addresses = [
            ({key: link.get(key) for key in kept}, [one["local"] for one in link["addr_info"]])
            for link in links
        ]
        queues = json.loads(self.call("tc", "-j", "qdisc"))
        kinds = [[one.get(key) for key in ("kind", "handle", "dev", "parent")] for one in queues]
        return addresses, kinds, self.call("tc", "filter")

    def transfer_s(
        self, host: str, port: int, count: int, *, to_client: bool, namespace: str, odd: str = ""
    ) -> float:
        """How long so many bytes take between that address of the machine and a namespace."""
        direction = ("send", "take") if to_client else ("take", "send")
        words = [sys.executable, "-c"]
        place = [host, str(port), str(count)]
        with subprocess.Popen(
            [*self.inside(), *words, _SERVE, *place, direction[0]],
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == "listening\n"
                client = subprocess.run(
                    [*self.inside(namespace), *words, _CONNECT, *place, direction[1], odd],
                    capture_output=True,
                    text=True,
                    timeout=150,
                )
                assert client.returncode == 0, client.stderr
                server.wait(timeout=20)
            finally:
                server.kill()
        return float(client.stdout)


@contextlib.contextmanager
def machine(folder: Path, *namespaces: str) -> Iterator[Machine]:
    """With those namespaces; all of it goes with the last process in it."""
    holder = subprocess.Popen(
        ["unshare", "--net", "--mount", "sh", "-c", _BEGIN, "sh", *namespaces],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield Machine(holder, folder)
    finally:
        holder.kill()
        holder.communicate(timeout=20)
