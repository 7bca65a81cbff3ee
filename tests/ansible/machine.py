"""A machine to roll out to: sshd in namespaces of its own, on a copy of this system.

/etc, /opt, /root, /usr/local and /var are overlays whose changes stay in a tmpfs, /run is empty,
and the only way in is a pair of veth devices. When its first process ends, the kernel ends
everything in it and forgets all that was written.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

_OVERLAID = ("/etc", "/opt", "/root", "/usr/local", "/var")
_BEGIN = """\
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$ROOM"
for each in {folders}; do
  up="$ROOM/up$each" work="$ROOM/work$each"
  mkdir -p "$up" "$work"
  mount -t overlay overlay -o "lowerdir=$each,upperdir=$up,workdir=$work" "$each"
done
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t proc proc /proc
mkdir -p /run/sshd /run/lock
ip link set lo up
read -r _  # the device is there
ip address add "$ADDRESS/30" dev inside
ip link set inside up
exec /usr/sbin/sshd -D -e -f "$CONFIG"
"""
_CONFIG = """\
ListenAddress {address}:22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AcceptEnv LANG
Subsystem sftp internal-sftp
"""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_START_TIMEOUT_S = 30


@dataclass
class Machine:
    """How to reach it, from this network namespace."""

    address: str
    folder: Path  # host_key, user_key, known_hosts; sshd.log
    device: str  # our end of the veth pair
    process: subprocess.Popen[bytes]
    pid: int  # of sshd, as seen from outside

    @property
    def user_key(self) -> Path:
        """The private key of whoever may log in as root."""
        return self.folder / "user_key"

    @property
    def known_hosts(self) -> Path:
        """The machine's host key, as ssh keeps it."""
        return self.folder / "known_hosts"

    @property
    def log(self) -> str:
        """What sshd said."""
        return (self.folder / "sshd.log").read_text(errors="replace")

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One command in it, without ssh."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-a", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd="/",
            env={"PATH": _PATH},  # nothing that would lead it back to the checkout
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def changes(self) -> set[str]:
        """Files that were written in it and are there; removed ones are not told."""
        found = self.run(
            "find",
            *(f"{self.room}/up{each}" for each in _OVERLAID),
            "-type",
            "f",
            "-printf",
            "%p\n",
        )
        top = len(f"{self.room}/up")
        return {line[top:] for line in found.stdout.splitlines()}

    def ours(self) -> set[str]:
        """Those of them that gpupool's roll-out made."""
        return {path for path in self.changes() if "gpupool" in path}

    @property
    def room(self) -> Path:
        """Where the overlays keep what was written; seen from inside only."""
        return self.folder / "room"

    def end(self) -> None:
        """Ends everything in it."""
        self.process.kill()
        self.process.wait(timeout=20)
        # The kernel removes the pair some time after the last process; nobody waits for that.
        subprocess.run(["ip", "link", "delete", self.device], capture_output=True, check=False)


def missing() -> str:
    """What this machine lacks for it; empty: nothing."""
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    wanted = ("sshd", "ssh-keygen", "ip", "unshare", "nsenter", "mount")
    lacking = [each for each in wanted if not shutil.which(each, path=_PATH)]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def start(folder: Path) -> Machine:
    """A new one. Skips the test where this system has not got what it takes."""
    if lacking := missing():
        pytest.skip(lacking)
    room = folder / "room"
    room.mkdir(parents=True)
    for key in ("host_key", "user_key"):
        _must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
    # One network of four addresses for each test process on this system.
    block = 4 * (os.getpid() % 4096)
    network = f"10.213.{block // 256}."
    ours, theirs = f"{network}{block % 256 + 1}", f"{network}{block % 256 + 2}"
    (folder / "sshd_config").write_text(_CONFIG.format(address=theirs, folder=folder))
    kind, key = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"{theirs} {kind} {key}\n")
    device = f"gpt{os.getpid() % 10**7}"
    environment = {
        "PATH": _PATH,
        "ROOM": str(room),
        "ADDRESS": theirs,
        "CONFIG": str(folder / "sshd_config"),
    }
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c"),
                _BEGIN.format(folders=" ".join(_OVERLAID)),
            ],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
        )
    machine = Machine(theirs, folder, device, process, 0)
    try:
        machine.pid = _child(machine)
        _must(
            "ip",
            "link",
            "add",
            device,
            "type",
            "veth",
            "peer",
            "name",
            "inside",
            "netns",
            str(machine.pid),
        )
        _must("ip", "address", "add", f"{ours}/30", "dev", device)
        _must("ip", "link", "set", device, "up")
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        _wait_for_sshd(machine)
    except BaseException:
        machine.end()
        raise
    return machine


def _child(machine: Machine) -> int:
    """The first process in it, once it has namespaces of its own."""
    pid = machine.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if machine.process.poll() is not None:
            pytest.skip(f"no namespaces here: {machine.log.strip()}")
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.02)
    raise AssertionError(f"unshare has no child after {_START_TIMEOUT_S} s: {machine.log}")


def _wait_for_sshd(machine: Machine) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        if machine.process.poll() is not None:
            pytest.skip(f"no overlays or no sshd here: {machine.log.strip()}")
        try:
            with socket.create_connection((machine.address, 22), timeout=1) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        except OSError:
            pass
        assert time.monotonic() < deadline_s, machine.log
        time.sleep(0.05)


def _must(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{command}: {done.stderr}"
