"""What `vm attach` and `vm detach` do to a running domain whose vsock device is the kernel's.

The tests in tests/libvirt have no /dev/vhost-vsock, so the domain here is a fake; hostd is a
stand-in behind its real socket.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from gpupool.cli import domain
from gpupool.cli.backend import RefusedError
from gpupool.cli.domain import AskedVgpu
from gpupool.cli.libvirt_domains import Domain
from gpupool.cli.local_backend import LocalBackend
from gpupool.cli.vm_edit import Editor, Outcome, Wish
from tests.fakes.admin_socket import AdminSocket

UUID = "0b0c0d0e-0000-4000-8000-00000000000a"
XML = f"""<domain type='kvm'><name>web</name><uuid>{UUID}</uuid>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices/></domain>"""
WISH = Wish(AskedVgpu(25, 4096), 16, relay=False, tenant="")


@dataclass
class FakeLibvirt:
    """The connection of the domain."""

    is_local: bool = True


@dataclass
class FakeDomain:
    """A running domain: two texts."""

    libvirt: FakeLibvirt = field(default_factory=FakeLibvirt)
    name: str = "web"
    uuid: str = UUID
    running: bool = True
    persistent: bool = True
    texts: dict[bool, str] = field(default_factory=lambda: {False: XML, True: XML})
    refused: str = ""  # the device that cannot be plugged in
    unplugged: list[str] = field(default_factory=list)

    def xml(self, live: bool) -> str:
        """One of them."""
        return self.texts[live]

    def define(self, xml: str) -> None:
        """The one of its next start."""
        self.texts[False] = xml

    def set_metadata(self, asked: domain.Request | None, live: bool) -> None:
        """As libvirt does, where there is none yet."""
        text = "" if asked is None else domain.metadata(asked)
        before, _, after = self.texts[live].partition("<os>")
        before = before.partition("<metadata>")[0]
        self.texts[live] = f"{before}<metadata>{text}</metadata><os>{after}"

    def plug(self, xml: str) -> str:
        """libvirt chooses the CID."""
        if self.refused and f"<{self.refused}" in xml:
            return "no slot is free"
        xml = xml.replace("<cid auto='yes'/>", "<cid auto='yes' address='5'/>")
        text = self.texts[True].replace("<devices/>", "<devices></devices>")
        self.texts[True] = text.replace("</devices>", f"{xml}</devices>")
        return ""

    def unplug(self, xml: str) -> str:
        """Only noted."""
        self.unplugged.append("vsock" if "<vsock" in xml else "window")
        return ""


@pytest.fixture
def hostd() -> Iterator[AdminSocket]:
    """It admits everything until it is told otherwise."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as folder:
        one = AdminSocket(Path(folder) / "admin.sock")
        nothing: dict[str, Any] = {"vms": [], "allowed": []}
        one.results["vm_list"] = {**nothing, "folder": "/run/gpupool/vms", "relay": False}
        yield one
        one.close()


def editor(one: FakeDomain, hostd: AdminSocket) -> Editor:
    return Editor(cast(Domain, one), LocalBackend(str(hostd.path), 10))


def attach(one: FakeDomain, hostd: AdminSocket) -> Outcome:
    return editor(one, hostd).attach(WISH)


def test_a_running_domain_gets_everything_at_once(hostd: AdminSocket) -> None:
    one = FakeDomain()
    outcome = attach(one, hostd)
    assert hostd.methods()[2:] == ["vm_allow", "vm_prepare", "vm_started"]
    _, prepare, started = hostd.asked[2:]
    assert (prepare["cid"], prepare["window_mib"], started["cid"]) == (5, 16, 5)
    assert (
        outcome.live
        == outcome.next_start
        == [
            "1 vGPU of 25% and 4096 MiB",
            "a window of 16 MiB",
            "vsock",
        ]
    )
    live = domain.request(one.texts[True])
    assert live.added.devices == ("vsock", "window")
    assert live.added.right

    hostd.results["vm_list"]["allowed"] = [
        {"uuid": UUID, "compute_percent": 25, "memory_mib": 4096, "vgpus": 1, "cid": 0}
        | {"configured": False}
    ]
    editor(one, hostd).detach()
    assert hostd.methods()[-2:] == ["vm_release", "vm_disallow"]
    assert one.unplugged == ["window", "vsock"]
    assert domain.request(one.texts[True]).vgpus == ()
    assert not domain.has_ours(one.texts[False])


def test_a_window_without_a_slot_comes_later(hostd: AdminSocket) -> None:
    outcome = attach(one := FakeDomain(refused="shmem"), hostd)
    assert hostd.methods()[3:] == ["vm_prepare", "vm_release", "vm_prepare", "vm_started"]
    assert hostd.asked[5]["window_mib"] == 0
    assert any("its window comes with its next start" in note for note in outcome.notes)
    assert domain.request(one.texts[True]).added.devices == ("vsock",)


def test_without_a_slot_for_vsock_nothing_happens_now(hostd: AdminSocket) -> None:
    outcome = attach(one := FakeDomain(refused="vsock"), hostd)
    assert hostd.methods()[2:] == ["vm_allow"]
    assert outcome.live == []
    assert any("no slot is free" in note for note in outcome.notes)
    assert one.texts[True] == XML
    assert domain.request(one.texts[False]).channel == "vsock"


def test_a_refusal_leaves_everything_as_it_was(hostd: AdminSocket) -> None:
    hostd.refusals["vm_prepare"] = "no room"
    one = FakeDomain()
    with pytest.raises(RefusedError, match="no room"):
        attach(one, hostd)
    assert one.unplugged == ["vsock"]
    assert one.texts[False] == XML
    assert hostd.methods()[3:] == ["vm_prepare", "vm_release", "vm_disallow"]


def test_what_cannot_be_begun_is_released(hostd: AdminSocket) -> None:
    hostd.refusals["vm_started"] = "cid 5 is another domain's"
    one = FakeDomain()
    with pytest.raises(RefusedError, match="another domain's"):
        attach(one, hostd)
    assert hostd.methods()[-2:] == ["vm_release", "vm_disallow"]
    assert one.texts[False] == XML
