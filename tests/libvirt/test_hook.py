"""The hook in libvirt's hands: what happens to domains, and what the user of virsh sees."""

from __future__ import annotations

from tests.fakes.admin_socket import AdminSocket
from tests.fakes.daemon import eventually
from tests.fakes.libvirtd import Libvirtd

VGPU = (
    '<gpupool:vgpus xmlns:gpupool="https://gpupool.dev/xmlns/libvirt/1.0">'
    '<gpupool:vgpu compute="25" memory="4096"/></gpupool:vgpus>'
)
WINDOW = "<shmem name='gpupool-UUID'><model type='ivshmem-plain'/><size unit='M'>16</size></shmem>"


def test_a_domain_is_admitted_and_released(libvirtd: Libvirtd, stand_in: AdminSocket) -> None:
    uuid = libvirtd.define(VGPU)
    libvirtd.does("start", "--paused", uuid)
    assert stand_in.methods() == ["vm_prepare", "vm_started"]
    assert stand_in.asked[0]["uuid"] == uuid
    assert stand_in.asked[0]["vgpus"][0]["compute_percent"] == 25
    libvirtd.does("destroy", uuid)
    assert stand_in.methods()[2:] == ["vm_release", "vm_release"]


def test_a_refusal_is_what_virsh_says(libvirtd: Libvirtd, stand_in: AdminSocket) -> None:
    uuid = libvirtd.define(VGPU)
    stand_in.refusals["vm_prepare"] = "25% were asked for, 10% are left; try fewer"
    done = libvirtd.virsh("start", "--paused", uuid)
    assert done.returncode == 1
    assert "gpupool: domain vm-" in done.stderr
    assert "25% were asked for, 10% are left; try fewer" in done.stderr
    assert libvirtd.does("domstate", uuid).strip() == "shut off"
    # libvirt clears up after a domain that never was.
    assert stand_in.methods() == ["vm_prepare", "vm_release", "vm_release"]


def test_what_fails_after_the_start_ends_the_domain(
    libvirtd: Libvirtd, stand_in: AdminSocket
) -> None:
    uuid = libvirtd.define(VGPU)
    stand_in.refusals["vm_started"] = "cid 7 is another domain's"
    done = libvirtd.virsh("start", "--paused", uuid)
    assert "cid 7 is another domain's" in done.stderr
    assert libvirtd.does("domstate", uuid).strip() == "shut off"
    assert stand_in.methods()[-1] == "vm_release"


def test_without_hostd(libvirtd: Libvirtd) -> None:
    uuid, other = libvirtd.define(VGPU), libvirtd.define()
    done = libvirtd.virsh("start", "--paused", uuid)
    assert done.returncode == 1
    assert "/run/gpupool/admin.sock: No such file or directory" in done.stderr
    assert "systemctl start gpupool-hostd" in done.stderr
    libvirtd.does("start", "--paused", other)


def test_a_domain_outlives_libvirtd(libvirtd: Libvirtd, stand_in: AdminSocket) -> None:
    uuid = libvirtd.define(VGPU)
    libvirtd.does("start", "--paused", uuid)
    stand_in.asked.clear()
    stand_in.refusals["vm_started"] = stand_in.refusals["vm_prepare"] = "not known"
    libvirtd.restart()
    eventually(lambda: "vm_prepare" in stand_in.methods(), "hostd is told of it")
    eventually(lambda: libvirtd.does("domstate", uuid).strip() == "paused", "it lives on")
    assert "vm_release" not in stand_in.methods()


def test_another_domains_window_is_not_opened(libvirtd: Libvirtd, stand_in: AdminSocket) -> None:
    victim = libvirtd.define(VGPU, WINDOW)
    thief = libvirtd.define("", WINDOW.replace("UUID", victim))
    done = libvirtd.virsh("start", "--paused", thief)
    assert "would be the window of another domain" in done.stderr
    assert not [one for one in stand_in.asked if one["method"] == "vm_prepare"]


def test_wrong_metadata_is_told(libvirtd: Libvirtd, stand_in: AdminSocket) -> None:
    uuid = libvirtd.define(VGPU.replace("4096", "4G"))
    done = libvirtd.virsh("start", "--paused", uuid)
    assert "its metadata is wrong: <vgpu> has memory='4G'" in done.stderr
    assert "vm_prepare" not in stand_in.methods()


def test_other_domains_are_not_held_up(libvirtd: Libvirtd, stand_in: AdminSocket) -> None:
    uuid = libvirtd.define()
    libvirtd.does("start", "--paused", uuid)
    libvirtd.does("destroy", uuid)
    assert not stand_in.asked
