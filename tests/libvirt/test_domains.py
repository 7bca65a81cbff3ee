"""Domains with vGPUs of a real hostd, started and ended by virsh."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from gpupool.cli import admin, domain
from gpupool.cli.libvirt_domains import Libvirt
from tests.fakes.daemon import Daemon, eventually
from tests.fakes.libvirtd import Libvirtd
from tests.fakes.vm_command import Command

CONFIG = '[vm]\nrelay = "{}"\ngroup = "root"'
WINDOW = ("--window", "64")


class Host:
    """A hostd, its libvirt and the command."""

    def __init__(self, libvirtd: Libvirtd, hostd: Daemon) -> None:
        self.libvirtd = libvirtd
        self.hostd = hostd
        self.vm = Command(libvirtd, hostd.admin_socket)

    def now(self, uuid: str) -> dict[str, Any] | None:
        """What hostd has of that domain."""
        vms = admin.call(self.hostd.admin_socket, "vm_list")["vms"]
        return next((one for one in vms if one["uuid"] == uuid), None)

    def left(self, uuid: str) -> list[Path]:
        """Its files."""
        window = Path(f"/dev/shm/gpupool-{uuid}")  # noqa: S108
        return [one for one in (window, self.hostd.folder / "vms" / uuid) if one.exists()]


@pytest.fixture
def host(libvirtd: Libvirtd, hostd: Daemon) -> Host:
    """With relays: there is no vhost-vsock where these tests run."""
    hostd.start(CONFIG.format("yes"))
    return Host(libvirtd, hostd)


def test_from_attach_to_destroy(host: Host) -> None:
    uuid = host.libvirtd.define()
    host.vm.says("attach", uuid, "--compute", "25", "--memory", "1000", *WINDOW)
    host.libvirtd.does("start", "--paused", uuid)
    now = host.now(uuid)
    assert now is not None
    assert (now["state"], now["relay"], now["window_mib"]) == ("started", True, 64)
    assert now["cid"] > 2
    assert [one["compute_percent"] for one in now["vgpus"]] == [25]
    window, folder = host.left(uuid)
    assert window.stat().st_size == 64 << 20
    assert stat.S_IMODE(window.stat().st_mode) == 0o660  # QEMU did not make it
    assert "started" in host.vm.says("list")
    host.libvirtd.does("destroy", uuid)
    assert host.now(uuid) is None
    assert host.left(uuid) == []
    assert not folder.exists()
    assert "-" in host.vm.says("show", uuid)


def test_the_last_share_goes_to_one_of_two(host: Host) -> None:
    first, second = host.libvirtd.define(), host.libvirtd.define()
    for uuid in (first, second):
        host.vm.says("attach", uuid, "--compute", "60", "--no-window")
    host.libvirtd.does("start", "--paused", first)
    done = host.libvirtd.virsh("start", "--paused", second)
    assert done.returncode == 1
    assert "60%" in done.stderr
    assert "40%" in done.stderr
    assert host.left(second) == []
    host.libvirtd.does("destroy", first)
    host.libvirtd.does("start", "--paused", second)


def test_a_request_is_no_right(host: Host) -> None:
    uuid = host.libvirtd.define()
    host.vm.says("attach", uuid, "--compute", "20", "--no-window")
    host.vm.says("allow", uuid, "--compute", "10")
    done = host.libvirtd.virsh("start", "--paused", uuid)
    assert "asks for 20% compute and may have 10%" in done.stderr
    host.vm.says("disallow", uuid)
    done = host.libvirtd.virsh("start", "--paused", uuid)
    assert f"gpupool vm allow {uuid}" in done.stderr
    assert host.left(uuid) == []


def test_a_running_domain_gets_another_vgpu_at_once(host: Host) -> None:
    uuid = host.libvirtd.define()
    host.vm.says("attach", uuid, "--compute", "20", *WINDOW)
    host.libvirtd.does("start", "--paused", uuid)
    said = host.vm.says("attach", uuid, "--compute", "30", *WINDOW)
    assert "now: 1 vGPU of 30%" in said
    assert "from its next start: 1 vGPU of 30%" in said
    now = host.now(uuid)
    assert now is not None
    assert [one["compute_percent"] for one in now["vgpus"]] == [30]
    assert 'compute="30"' in host.libvirtd.xml(uuid, live=True)

    before = host.libvirtd.xml(uuid)
    done = host.vm.call("attach", uuid, "--compute", "100", "--count", "2", *WINDOW)
    assert done.returncode == 3, done.stdout
    assert "may" in done.stderr or "room" in done.stderr or "left" in done.stderr
    assert host.libvirtd.xml(uuid) == before


def test_a_running_domain_loses_its_vgpu_at_once(host: Host) -> None:
    uuid = host.libvirtd.define()
    before = host.libvirtd.xml(uuid)
    host.vm.says("attach", uuid, "--compute", "20", "--no-window")
    host.libvirtd.does("start", "--paused", uuid)
    said = host.vm.says("detach", uuid)
    assert "now: no vGPU" in said
    assert "no right" in said
    assert host.now(uuid) is None
    assert "gpupool.dev" not in host.libvirtd.xml(uuid, live=True)
    assert host.libvirtd.xml(uuid) == before


def test_what_cannot_be_plugged_in_comes_with_the_next_start(host: Host) -> None:
    uuid = host.libvirtd.define()
    host.libvirtd.does("start", "--paused", uuid)
    said = host.vm.says("attach", uuid, "--compute", "20", *WINDOW)
    assert "nothing changes before its next start: the relay's device" in said
    assert "now:" not in said
    assert host.now(uuid) is None
    host.libvirtd.does("destroy", uuid)
    host.libvirtd.does("start", "--paused", uuid)
    assert host.now(uuid) is not None


def test_domains_outlive_hostd(host: Host) -> None:
    uuid = host.libvirtd.define()
    host.vm.says("attach", uuid, "--compute", "20", *WINDOW)
    host.libvirtd.does("start", "--paused", uuid)
    host.hostd.stop()
    host.hostd.start(CONFIG.format("yes"))
    now = host.now(uuid)
    assert now is not None
    assert now["state"] == "started"
    host.libvirtd.does("destroy", uuid)
    assert host.left(uuid) == []


def test_a_guest_that_is_killed_leaves_nothing(host: Host) -> None:
    uuid = host.libvirtd.define()
    host.vm.says("attach", uuid, "--compute", "20", *WINDOW)
    host.libvirtd.does("start", "--paused", uuid)
    os.kill(host.libvirtd.qemu_pid(uuid), signal.SIGKILL)
    eventually(lambda: host.now(uuid) is None, "its vGPU is free")
    assert host.left(uuid) == []


def test_a_clone_is_attached_anew(host: Host) -> None:
    first, second = host.libvirtd.define(), host.libvirtd.define()
    before = host.libvirtd.xml(second)
    host.vm.says("attach", first, "--compute", "20", *WINDOW)
    path = host.libvirtd.folder / "clone.xml"
    text = host.libvirtd.xml(first).replace(f"vm-{first[:8]}", f"vm-{second[:8]}")
    path.write_text(text.replace(f"<uuid>{first}", f"<uuid>{second}"))
    host.libvirtd.does("define", str(path))
    done = host.libvirtd.virsh("start", "--paused", second)
    assert "would be the window of another domain" in done.stderr
    host.vm.says("attach", second, "--compute", "20", *WINDOW)
    host.libvirtd.does("start", "--paused", second)
    host.libvirtd.does("destroy", second)
    host.vm.says("detach", second)
    assert host.libvirtd.xml(second) == before


def test_what_ends_without_hostd_is_free_when_it_is_back(host: Host) -> None:
    uuid, other = host.libvirtd.define(), host.libvirtd.define()
    for one in (uuid, other):
        host.vm.says("attach", one, "--compute", "20", *WINDOW)
        host.libvirtd.does("start", "--paused", one)
    host.hostd.stop()
    host.libvirtd.does("destroy", uuid)
    assert len(host.left(uuid)) == 2
    host.hostd.start(CONFIG.format("yes"))
    assert host.now(uuid) is None
    assert host.left(uuid) == []
    assert host.now(other) is not None


def test_the_window_can_be_plugged_into_a_running_domain(libvirtd: Libvirtd) -> None:
    ports = "<controller type='pci' model='pcie-root-port'/>" * 2
    bridge = "<controller type='pci' model='pcie-to-pci-bridge'/>"
    uuid = libvirtd.define(devices=f"<controller type='pci' model='pcie-root'/>{ports}{bridge}")
    libvirtd.does("start", "--paused", uuid)
    connection = Libvirt(libvirtd.uri)
    try:
        one = connection.find(uuid)
        assert one.plug(domain.shmem(uuid, 16)) == ""
        assert domain.request(one.xml(live=True)).window_mib == 16
        assert one.unplug(domain.shmem(uuid, 16)) == ""
    finally:
        connection.close()
        Path(f"/dev/shm/gpupool-{uuid}").unlink(missing_ok=True)  # noqa: S108 (QEMU made it)
