"""`gpupool vm attach` and `detach` on domains of a real libvirtd."""

from __future__ import annotations

import subprocess

import pytest

from tests.fakes.admin_socket import AdminSocket
from tests.fakes.libvirtd import Libvirtd
from tests.fakes.vm_command import Command

GIVEN = ("--compute", "25", "--memory", "4G", "--window", "64")


@pytest.fixture
def vm(libvirtd: Libvirtd, stand_in: AdminSocket) -> Command:
    """The command."""
    return Command(libvirtd, stand_in.path)


def valid(libvirtd: Libvirtd, xml: str) -> None:
    """libvirt's own checker finds nothing wrong."""
    path = libvirtd.folder / "checked.xml"
    path.write_text(xml)
    done = subprocess.run(
        ["virt-xml-validate", str(path), "domain"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("relay", [True, False])
def test_attach_and_detach_leave_the_domain_as_it_was(
    libvirtd: Libvirtd, stand_in: AdminSocket, vm: Command, relay: bool
) -> None:
    other = '<app:other xmlns:app="https://example.org/app"><app:x y="1"/></app:other>'
    uuid = libvirtd.define(other)
    stand_in.results["vm_list"] |= {"relay": relay}
    before = libvirtd.xml(uuid)
    said = vm.says("attach", uuid, *GIVEN)
    assert "from its next start: 1 vGPU of 25% and 4096 MiB, a window of 64 MiB, vsock" in said
    attached = libvirtd.xml(uuid)
    valid(libvirtd, attached)
    assert f"<shmem name='gpupool-{uuid}'>" in attached
    assert (f"path=/run/gpupool/vms/{uuid}/vhost" in attached) is relay
    assert ("<access mode='shared'/>" in attached) is relay
    assert ("<cid auto='yes'/>" in attached) is not relay
    right = {"compute_percent": 25, "memory_mib": 4096, "vgpus": 1}
    asked = stand_in.asked[-1]
    assert asked["method"] == "vm_allow"
    assert asked["uuid"] == uuid
    assert right.items() <= asked.items()

    stand_in.results["vm_list"] |= {
        "allowed": [{"uuid": uuid, **right, "cid": 0, "configured": False}]
    }
    vm.says("attach", uuid, *GIVEN)  # once more changes nothing
    assert libvirtd.xml(uuid) == attached
    vm.says("attach", uuid, "--compute", "10", "--no-window")
    changed = libvirtd.xml(uuid)
    assert "shmem" not in changed
    assert 'compute="10" memory="0"' in changed

    assert "from its next start: no vGPU" in vm.says("detach", uuid)
    assert libvirtd.xml(uuid) == before
    assert stand_in.asked[-1] == {"method": "vm_disallow", "uuid": uuid}
    done = vm.call("detach", uuid)
    assert done.returncode == 3
    assert "has no vGPU" in done.stderr


def test_what_the_domain_had_stays(libvirtd: Libvirtd, vm: Command) -> None:
    uuid = libvirtd.define(devices="<vsock model='virtio'><cid auto='no' address='77'/></vsock>")
    before = libvirtd.xml(uuid)
    vm.says("attach", uuid, *GIVEN)
    assert libvirtd.xml(uuid).count("<vsock") == 1
    vm.says("detach", uuid)
    assert libvirtd.xml(uuid) == before
    done = vm.call("attach", uuid, "--compute", "5", "--relay")
    assert done.returncode == 3, done.stderr


def test_a_refused_right_changes_nothing(
    libvirtd: Libvirtd, stand_in: AdminSocket, vm: Command
) -> None:
    uuid = libvirtd.define()
    before = libvirtd.xml(uuid)
    stand_in.refusals["vm_allow"] = "it stands in the configuration"
    done = vm.call("attach", uuid, *GIVEN)
    assert done.returncode == 3
    assert "it stands in the configuration" in done.stderr
    assert libvirtd.xml(uuid) == before


def test_detach_works_without_hostd(libvirtd: Libvirtd, vm: Command) -> None:
    uuid = libvirtd.define()
    before = libvirtd.xml(uuid)
    vm.says("attach", uuid, *GIVEN)
    alone = Command(libvirtd, libvirtd.folder / "nobody")
    assert "its right stays" in alone.says("detach", uuid)
    assert libvirtd.xml(uuid) == before
    done = alone.call("attach", uuid, *GIVEN)
    assert done.returncode == 1
    assert libvirtd.xml(uuid) == before


def test_show_tells_what_it_asks_for(libvirtd: Libvirtd, vm: Command) -> None:
    uuid = libvirtd.define()
    vm.says("attach", uuid, *GIVEN, "--count", "2", "--mode", "on-demand", "--policy", "hard")
    shown = vm.json("show", uuid)["vm"]
    assert shown["asks"]["vgpus"] == [
        {
            "compute_percent": 25,
            "memory_mib": 4096,
            "count": 2,
            "mode": "on-demand",
            "policy": "hard",
        }
    ]
    assert shown["asks"]["window_mib"] == 64
    assert shown["asks"]["channel"] == "vsock"
    assert "2 x 25%, 4096 MiB, on-demand, hard; window 64 MiB; vsock" in vm.says("show", uuid)


def test_a_name_that_no_domain_has_is_refused(vm: Command) -> None:
    done = vm.call("attach", "nothing-here", "--compute", "5")
    assert done.returncode == 3
    assert "nothing-here" in done.stderr


def test_a_command_line_that_is_wrong(vm: Command) -> None:
    for words in (
        (),
        ("--compute", "0"),
        ("--compute", "5", "--window", "3"),
        ("--compute", "5", "--window", "64", "--no-window"),
        ("--compute", "101"),
    ):
        assert vm.call("attach", "x", *words).returncode == 2, words


@pytest.mark.parametrize("size", ["1", "16", "32M"])
def test_a_window_that_holds_no_session_is_refused(vm: Command, size: str) -> None:
    done = vm.call("attach", "x", "--compute", "5", "--window", size)
    assert done.returncode == 2
    assert f"--window {size}: " in done.stderr
    assert "holds no session: one needs 64 MiB" in done.stderr
    assert "--no-window" in done.stderr
