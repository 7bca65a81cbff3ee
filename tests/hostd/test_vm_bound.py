"""Domains on a host that a controller leads use the vGPUs that it has reserved there."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from gpupool.hostd.core.admission import Door, of_vm
from gpupool.hostd.core.peer import Peer
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.vgpu import Quota
from gpupool.hostd.core.vm import Vm, VmError, VmOrder, VmRight, VmVgpu
from gpupool.hostd.core.vms import Vms, VmSettings
from gpupool.wire.hello import Hello, TransportKind
from tests.fakes.vms import FakePlaces, FakeVmStore
from tests.hostd.test_controlled import Rig, wanted
from tests.hostd.test_host import HELLO

A = "0b0c0d0e-0000-4000-8000-00000000000a"
B = "0b0c0d0e-0000-4000-8000-00000000000b"
VSOCK = frozenset({TransportKind.VSOCK})


class Led(Rig):
    """A host with a controller, and two domains of the tenant acme that may have much."""

    vms: Vms
    records: FakeVmStore

    def begin(self) -> Led:
        """As hostd starts."""
        settings = VmSettings(relay=True)
        look_up = self.controlled.look_up
        self.vms = Vms(
            self.host,
            self.vgpus,
            self.records,
            FakePlaces(),
            self.machine.clock,
            settings,
            look_up,
        )
        self.vms.adopt()
        return self

    def again(self) -> Led:
        """Another hostd on the same machine."""
        later = Led.make(self.store, self.machine)
        assert isinstance(later, Led)
        later.records = self.records
        return later.begin()

    def prepare(self, uuid: str = A, name: str = "web", percent: int = 40, mib: int = 100) -> Vm:
        """Before its start."""
        asks = VmOrder(uuid, name, (VmVgpu(Quota(percent, mib)),))
        return self.vms.prepare(asks)

    def program(self, uuid: str) -> Any:
        """A program in it."""
        door, peer = self.vms.place(Door("unix:/x", VSOCK, b"", vm=uuid), Peer())
        hello = of_vm(replace(HELLO, transport=TransportKind.VSOCK), door)
        assert isinstance(hello, Hello), hello
        return self.host.open(hello, peer, door, 7)


@pytest.fixture
def led() -> Led:
    rig = Led.make()
    assert isinstance(rig, Led)
    rig.records = FakeVmStore()
    rig.begin()
    for uuid in (A, B):
        right = VmRight(uuid, tenant="acme", compute_percent=100, vgpus=2)
        rig.vms.rights.allow(right)
    return rig


def test_a_domain_uses_the_controllers_vgpu(led: Led) -> None:
    led.apply(1, wanted("web", percent=40))
    vm = led.prepare(percent=30)
    assert vm.bound == ("web",)
    session = led.program(A)
    assert isinstance(session, Session)
    assert (session.vgpu, session.compute_percent) == ("web", 40)  # the controller's word counts
    assert led.gpu.local_compute_percent == 0  # nothing of the node's own
    facts = [one for one in led.controlled.picture().sessions if one.vgpu]
    assert [one.vgpu for one in facts] == ["vgpu-web"]
    later = led.again()
    assert later.vms.get(A) == vm
    assert isinstance(later.program(A), Session)
    later.vms.release(A)
    assert [one.name for one in later.host.allocations.table.named] == ["web"]  # it stays


def test_what_the_controller_has_not_given_is_refused(led: Led) -> None:
    advice = (
        "domain web: the controller that leads this host has no reserved vGPU web here; make it: "
        "gpupool vgpu create web --mode reserved --node THIS_HOST --tenant acme ..."
    )
    with pytest.raises(VmError, match=re.escape(advice)):
        led.prepare()
    led.apply(1, wanted("web", tenant="tenant-2", tenant_name="other"))
    with pytest.raises(VmError, match="has no reserved vGPU web here"):
        led.prepare()
    led.apply(2, wanted("web", on_demand=True))
    with pytest.raises(VmError, match="has no reserved vGPU web here"):
        led.prepare()
    assert led.records.records == {}


def test_one_that_is_too_small_is_refused(led: Led) -> None:
    led.apply(1, wanted("web", percent=40))
    with pytest.raises(VmError, match=r"asks for 50% compute and 100 MiB, and the .* web has 40%"):
        led.prepare(percent=50)
    for mib in (0, 101):
        with pytest.raises(VmError, match="change one of them"):
            led.prepare(mib=mib)


def test_it_is_one_domains(led: Led) -> None:
    led.apply(1, wanted("web"))
    led.prepare(A, "web")
    with pytest.raises(VmError, match=rf"vGPU web is used by domain web \({A}\) until"):
        led.prepare(B, "web")
    with pytest.raises(VmError, match="change it there"):
        led.vms.change(A, (VmVgpu(Quota(1, 1)),))
    assert led.prepare(A, "web").bound == ("web",)  # again


def test_a_vgpu_that_the_controller_takes_back(led: Led) -> None:
    led.apply(1, wanted("web"))
    led.prepare()
    led.apply(2)
    door, _ = led.vms.place(Door("unix:/x", VSOCK, b"", vm=A), Peer())
    assert door.vgpus == ()
    led.vms.release(A)
    assert led.vms.all() == ()
