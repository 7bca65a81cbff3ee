"""Command lines of hypervisors as Kata writes them, and processes that have them.

The words are those of Kata's sources (hostd/core/kata_hypervisor.py names the files), with ids of
our own; none was taken from a running Kata.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool.hostd.adapters import hypervisor_process
from gpupool.hostd.core.kata_hypervisor import CommandLine, UnknownHypervisorError, read
from gpupool.hostd.core.ports import PortError
from tests.fakes.sandbox import Sandbox

ID = "5b0d" * 16
GO_QEMU = (
    *("/opt/kata/bin/qemu-system-x86_64", "-name", f"sandbox-{ID},debug-threads=on"),
    *("-uuid", "8a5c7b1c-0000-4000-8000-0000000000aa", "-machine", "q35,accel=kvm,nvdimm=on"),
    *("-cpu", "host,pmu=off", "-qmp", f"unix:path=/run/vc/vm/{ID}/qmp.sock,server=on,wait=off"),
    *("-m", "2048M,slots=10,maxmem=128G", "-device", "pci-bridge,bus=pcie.0,id=pci-bridge-0"),
    *("-device", "virtio-serial-pci,disable-modern=false,id=serial0"),
    "-device",
    "vhost-vsock-pci,disable-modern=false,vhostfd=3,id=vsock-2871963,guest-cid=2871963,bus=pcie.0",
    *("-chardev", f"socket,id=char-fs,path=/run/vc/vm/{ID}/vhost-fs.sock"),
    *("-pidfile", f"/run/vc/vm/{ID}/pid", "-smp", "1,cores=1,threads=1,sockets=8,maxcpus=8"),
)
RUST_QEMU = (
    *("/opt/kata/bin/qemu-system-x86_64", "-name", f"sandbox-{ID},debug-threads=on"),
    *("-device", "vhost-vsock-pci,disable-modern=true,vhostfd=26,guest-cid=1771408"),
)
Z_QEMU = ("qemu-system-s390x", "-device", "vhost-vsock-ccw,id=v,guest-cid=4,devno=fe.0.0001")
GO_CLH = (
    *("/opt/kata/bin/cloud-hypervisor", "--api-socket", f"/run/vc/vm/{ID}/clh-api.sock"),
    *("-v", "--seccomp", "true"),
)
RUST_CLH = ("/opt/kata/bin/cloud-hypervisor", "--api-socket", f"/run/kata/{ID}/ch-api.sock")
GO_FC = (
    "/opt/kata/bin/firecracker",
    *("--api-sock", f"/run/vc/firecracker/{ID[:32]}/root/run/firecracker.socket"),
    *("--config-file", f"/run/vc/firecracker/{ID[:32]}/fcConfig.json"),
)
RUST_FC = ("/opt/kata/bin/firecracker", "--api-sock", f"/run/kata/{ID}/run/fc.sock")
JAILED_FC = (
    *("firecracker", f"--id={ID[:32]}", "--start-time-us=81", "--start-time-cpu-us=10"),
    *("--config-file", "/fcConfig.json"),
)
DRAGONBALL = (
    "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2",
    *("-namespace", "k8s.io", "-address", "/run/containerd/containerd.sock"),
    *("-publish-binary", "/usr/bin/containerd", "-id", ID),
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (GO_QEMU, CommandLine("qemu", 2871963)),
        (RUST_QEMU, CommandLine("qemu", 1771408)),
        (Z_QEMU, CommandLine("qemu", 4)),
        (GO_CLH, CommandLine("cloud-hypervisor", sockets=(f"/run/vc/vm/{ID}/clh.sock",))),
        (RUST_CLH, CommandLine("cloud-hypervisor", sockets=(f"/run/kata/{ID}/ch-vm.sock",))),
        (
            GO_FC,
            CommandLine(
                "firecracker", sockets=(f"/run/vc/firecracker/{ID[:32]}/root/kata.hvsock",)
            ),
        ),
        (RUST_FC, CommandLine("firecracker", sockets=(f"/run/kata/{ID}/kata.hvsock",))),
        (
            JAILED_FC,
            CommandLine(
                "firecracker",
                sockets=(
                    f"/run/vc/firecracker/{ID[:32]}/root/kata.hvsock",
                    f"/run/kata/firecracker/{ID[:32]}/root/kata.hvsock",
                ),
            ),
        ),
        (DRAGONBALL, CommandLine("dragonball", sockets=(f"/run/kata/{ID}/root/kata.hvsock",))),
    ],
)
def test_what_kata_writes_is_understood(words: tuple[str, ...], expected: CommandLine) -> None:
    assert read(words) == expected


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "a process without a command line is no hypervisor"),
        (("/usr/bin/sleep", "9"), "sleep is no hypervisor that gpupool knows"),
        (("qemu-kvm", "-m", "1"), "no vhost-vsock device with a guest-cid"),
        (("qemu-kvm", "-device", "vhost-vsock-pci,guest-cid=2"), "allowed for a virtual machine"),
        (("qemu-kvm", "-device", "vhost-vsock-pci,guest-cid=²"), "no vhost-vsock device"),
        (("qemu-kvm", "-device"), "no vhost-vsock device"),
        (("cloud-hypervisor", "--api-socket", "/run/x/other.sock"), "no --api-socket of Kata's"),
        (("cloud-hypervisor", "--api-socket", "clh-api.sock"), "no --api-socket of Kata's"),
        (("cloud-hypervisor", "--api-socket", "/a/../etc/clh-api.sock"), "no --api-socket of"),
        (("firecracker", "--id", "../../etc"), "neither --id nor --api-sock"),
        (("containerd-shim-kata-v2", "-id", "a/b"), "has no -id"),
    ],
)
def test_anything_else_is_refused(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(UnknownHypervisorError, match=text):
        read(words)


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name: a socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="gpupool-t-") as name:
        yield Path(name)


def test_a_process_is_found_by_its_socket(folder: Path) -> None:
    sandbox = Sandbox(folder)
    sandbox.start()
    try:
        found = hypervisor_process.find(sandbox.pid)
        assert (found.kind, found.pid, found.cid) == ("cloud-hypervisor", sandbox.pid, 0)
        assert found.socket == str(sandbox.vsock)
        assert hypervisor_process.lives(found)
        sandbox.vsock.unlink()
        with pytest.raises(PortError, match=r"no vsock socket at .*/clh\.sock in a folder"):
            hypervisor_process.find(sandbox.pid)
        sandbox.vsock.write_text("")  # no socket
        with pytest.raises(PortError, match="no vsock socket"):
            hypervisor_process.find(sandbox.pid)
    finally:
        sandbox.stop()
    assert not hypervisor_process.lives(found)
    with pytest.raises(PortError, match=f"process {found.pid}, which Kata names"):
        hypervisor_process.find(found.pid)


def test_a_process_is_found_by_its_cid(folder: Path) -> None:
    sandbox = Sandbox(folder, words=GO_QEMU[1:], program=GO_QEMU[0])
    sandbox.start()
    try:
        found = hypervisor_process.find(sandbox.pid)
        assert (found.kind, found.cid, found.socket) == ("qemu", 2871963, "")
    finally:
        sandbox.stop()


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_folder_that_others_may_write_is_refused(folder: Path, mode: int) -> None:
    sandbox = Sandbox(folder)
    sandbox.start()
    try:
        sandbox.place.chmod(mode)
        with pytest.raises(PortError, match="in a folder that is root's"):
            hypervisor_process.find(sandbox.pid)
    finally:
        sandbox.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_hypervisor_of_another_user_is_refused(folder: Path) -> None:
    text = "import os, sys; os.setuid(65534); print(1, flush=True); sys.stdin.read()"
    (folder / "vm").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "vm" / "clh.sock"))
        process = subprocess.Popen(
            ["cloud-hypervisor", "-c", text, "--api-socket", str(folder / "vm" / "clh-api.sock")],
            executable=sys.executable,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"1\n"
            with pytest.raises(PortError, match="runs as user 65534; rootless sandboxes"):
                hypervisor_process.find(process.pid)
        finally:
            process.kill()
            process.communicate(timeout=20)
