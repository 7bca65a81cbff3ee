"""Kata containers: devices, tokens, CIDs, and that the end of one leaves nothing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from gpupool.hostd.core.admission import Door, Refusal, of_vm
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.kata import KataContainer, KataDevice, KataError, KataUse
from gpupool.hostd.core.kata_hypervisor import Hypervisor
from gpupool.hostd.core.katas import Katas
from gpupool.hostd.core.peer import Peer, owner_of
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.vgpu import Quota
from gpupool.hostd.core.vgpus import Vgpus
from gpupool.hostd.core.vm import VmError, VmVgpu
from gpupool.hostd.core.vms import Vms, VmSettings
from gpupool.wire.hello import TransportKind, WelcomeStatus
from tests.fakes.katas import FakeKataPlaces, FakeKataStore
from tests.fakes.vms import FakePlaces, FakeVmStore
from tests.hostd.test_host import HELLO, Machine
from tests.hostd.test_vgpus import machine, nothing_left
from tests.hostd.test_vms import VSOCK

QEMU = Hypervisor("qemu", 100, 1, cid=77)
OTHER_QEMU = Hypervisor("qemu", 101, 1, cid=78)
CLH = Hypervisor("cloud-hypervisor", 200, 1, socket="/run/vc/vm/x/clh.sock")
DEVICE = KataDevice("trainer", "", (VmVgpu(Quota(25, 1000)),), "acme")
ONE = KataContainer("c1", "s1", "research", "trainer-0", "train", 1000, "/bundles/c1")


@dataclass
class Rig:
    """One host, its fakes kept when hostd restarts."""

    machine: Machine = field(default_factory=machine)
    vm_store: FakeVmStore = field(default_factory=FakeVmStore)
    vm_places: FakePlaces = field(default_factory=FakePlaces)
    store: FakeKataStore = field(default_factory=FakeKataStore)
    places: FakeKataPlaces = field(default_factory=FakeKataPlaces)
    numbers: Any = field(default_factory=lambda: itertools.count(10))

    def __post_init__(self) -> None:
        self.places.hypervisors = {one.pid: one for one in (QEMU, OTHER_QEMU, CLH)}
        self.start()

    def start(self) -> None:
        """A hostd, as after a start."""
        one = self.machine
        self.places.doors.clear()
        self.host: Host = one.host()
        self.vgpus = Vgpus(self.host, one.pages, one.vgpus)
        settings = VmSettings(relay=True, window_mib=1024)
        store, places = self.vm_store, self.vm_places
        self.vms = Vms(self.host, self.vgpus, store, places, one.clock, settings)
        self.katas = Katas(self.vms, self.store, self.places, self.uuid)
        self.host.adopt()
        self.vms.adopt()
        self.katas.adopt()

    def uuid(self) -> str:
        """A new one."""
        return f"0b0c0d0e-0000-4000-8000-{next(self.numbers):012}"

    def begin(self, container: KataContainer = ONE, pid: int = 100, name: str = "trainer") -> None:
        """With a device that is allowed, too."""
        self.katas.allow(replace(DEVICE, name=name))
        self.katas.begin(name, container, pid)

    def come(self, cid: int, token: bytes = b"") -> Door | Refusal:
        """What a program finds that comes by the kernel's vsock."""
        door = Door("vsock://any:9177", VSOCK, b"", vms_only=True)
        peer = Peer(address=f"vsock:{cid}:1024")
        here, _ = self.katas.place(door, peer) or self.vms.place(door, peer)
        return self.katas.inside(here, token)

    def client(self, cid: int, token: bytes) -> Session | Any:
        """A program with that token."""
        door = self.come(cid, token)
        assert isinstance(door, Door)
        hello = of_vm(replace(HELLO, transport=TransportKind.VSOCK), door)
        assert not isinstance(hello, Refusal)
        return self.host.open(hello, Peer(address="vm:s1"), door, 7)

    def gone(self) -> None:
        """Nothing of any container is left."""
        assert self.store.uses == {}
        assert self.places.doors == {}
        assert self.vm_store.records == {}
        nothing_left(self.machine)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_cid_and_a_token_say_which_container_it_is(rig: Rig) -> None:
    rig.begin()
    rig.begin(replace(ONE, id="c2", name="side", bundle="/bundles/c2"), name="side")
    rig.begin(replace(ONE, id="c3", sandbox="s2", pod="b", bundle="/bundles/c3"), 101, "other")
    trainer, side = rig.places.tokens["trainer"], rig.places.tokens["side"]
    assert rig.places.owners == {"trainer": 1000, "side": 1000, "other": 1000}
    mine, beside = rig.come(77, trainer), rig.come(77, side)
    assert isinstance(mine, Door)
    assert isinstance(beside, Door)
    assert (mine.tenant, mine.vgpus, beside.vgpus) == ("acme", ("trainer",), ("side",))
    assert owner_of(Peer(), mine) != owner_of(Peer(), beside)
    for cid, token in ((77, b""), (77, b"x"), (78, trainer), (77, rig.places.tokens["other"])):
        refused = rig.come(cid, token)
        assert isinstance(refused, Refusal)
        assert refused.status is WelcomeStatus.TOKEN
        assert len(refused.text.encode()) <= 255
    stranger = rig.come(79, trainer)
    assert isinstance(stranger, Door)
    assert "is no virtual machine that this host has prepared" in stranger.closed


def test_a_session_ends_with_its_container(rig: Rig) -> None:
    rig.begin()
    session = rig.client(77, rig.places.tokens["trainer"])
    assert isinstance(session, Session)
    old = rig.places.tokens["trainer"]
    assert not rig.katas.end("trainer", "/bundles/another")
    assert rig.katas.end("trainer", "/bundles/c1")
    assert (session.worker_pid, False) in [(p.pid, how) for p, how in rig.machine.workers.stopped]
    assert rig.places.tokens["trainer"] != old
    assert not rig.katas.end("trainer", "/bundles/c1")
    closed = rig.come(77, old)
    assert isinstance(closed, Door)
    assert closed.closed


def test_the_last_of_a_sandbox_closes_its_door(rig: Rig) -> None:
    rig.begin(pid=200)
    rig.begin(replace(ONE, id="c2", name="side", bundle="/bundles/c2"), 200, "side")
    rig.katas.end("trainer", "/bundles/c1")
    assert set(rig.places.doors) == {"s1"}
    rig.katas.end("side", "/bundles/c2")
    rig.gone()


def test_a_hypervisor_that_ends_takes_all_with_it(rig: Rig) -> None:
    rig.begin()
    rig.begin(replace(ONE, id="c2", name="side", bundle="/bundles/c2"), name="side")
    rig.begin(replace(ONE, id="c3", sandbox="s2", bundle="/bundles/c3"), 101, "other")
    rig.places.ends(100)
    assert set(rig.store.uses) == {"other"}
    rig.places.ends(101)
    rig.gone()


def test_a_cid_that_is_another_sandboxs_now(rig: Rig) -> None:
    """The end of the first one was not noticed."""
    rig.begin()
    old = rig.places.tokens["trainer"]
    rig.places.hypervisors[300] = replace(QEMU, pid=300)
    other = replace(ONE, id="c9", sandbox="s9", bundle="/bundles/c9")
    with pytest.raises(KataError, match=r"says that it has cid 77, .* which sandbox s1 has"):
        rig.begin(other, 300, "other")  # a lie: the first one lives
    assert set(rig.store.uses) == {"trainer"}
    del rig.places.hypervisors[100]
    rig.begin(other, 300, "other")
    assert set(rig.store.uses) == {"other"}
    assert isinstance(rig.come(77, old), Refusal)
    assert isinstance(rig.come(77, rig.places.tokens["other"]), Door)


def test_one_container_at_a_time(rig: Rig) -> None:
    rig.begin()
    rig.katas.begin("trainer", ONE, 100)  # again
    other = replace(ONE, id="c2", sandbox="s2", pod="trainer-1", bundle="/bundles/c2")
    with pytest.raises(KataError, match="used by container research/trainer-0/train, and one"):
        rig.katas.begin("trainer", other, 101)
    rig.katas.allow(replace(DEVICE, name="second"))
    with pytest.raises(KataError, match="has device trainer already, and a container finds one"):
        rig.katas.begin("second", ONE, 100)
    again = replace(ONE, id="c3", bundle="/bundles/c3")  # restarted, its end was not told
    before = rig.places.tokens["trainer"]
    rig.katas.begin("trainer", again, 100)
    assert rig.places.tokens["trainer"] != before
    assert not rig.katas.end("trainer", "/bundles/c1")  # told late
    assert rig.store.uses["trainer"].container == again
    rig.places.hypervisors.pop(100)
    rig.katas.begin("trainer", other, 101)  # the first one's sandbox is gone
    assert rig.store.uses["trainer"].container == other


def test_a_start_finds_everything_again(rig: Rig) -> None:
    rig.begin()
    rig.begin(replace(ONE, id="c2", sandbox="s2", bundle="/bundles/c2"), 200, "side")
    token = rig.places.tokens["trainer"]
    del rig.places.hypervisors[200]
    rig.start()
    assert set(rig.places.doors) == {"s1"}
    assert set(rig.store.uses) == {"trainer"}
    assert isinstance(rig.come(77, token), Door)
    assert [facts.device.name for facts in rig.katas.all()] == ["side", "trainer"]
    rig.store.uses.clear()  # half-way of an end
    rig.start()
    rig.gone()


def test_what_fails_leaves_nothing(rig: Rig) -> None:
    rig.places.fail_open = "cannot listen"
    with pytest.raises(PortError, match="cannot listen"):
        rig.begin()
    rig.gone()
    rig.places.fail_open = ""
    rig.katas.allow(replace(DEVICE, vgpus=(VmVgpu(Quota(60, 1000)),)))
    rig.katas.begin("trainer", ONE, 100)
    other = replace(ONE, id="c2", sandbox="s2", bundle="/bundles/c2")
    rig.katas.allow(replace(DEVICE, name="big", vgpus=(VmVgpu(Quota(100, 1000)),) * 8))
    with pytest.raises(VmError, match=r"Kata device big: 100% compute .* was asked for"):
        rig.katas.begin("big", other, 101)
    assert set(rig.store.uses) == {"trainer"}
    with pytest.raises(PortError, match="process 5 is no hypervisor"):
        rig.katas.begin("big", other, 5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"id": "../x"}, "allowed is a runtime's id"),
        ({"sandbox": ""}, "allowed is a runtime's id"),
        ({"uid": -1}, "allowed is a user's number"),
        ({"namespace": "web"}, "for namespace 'res*', and namespace 'web' asks for it"),
        ({"name": "side"}, "for container 'train', and container 'side'"),
    ],
)
def test_others_are_refused(rig: Rig, change: dict[str, Any], text: str) -> None:
    rig.katas.allow(replace(DEVICE, namespace="res*", container="train"))
    with pytest.raises(KataError) as raised:
        rig.katas.begin("trainer", replace(ONE, **change), 100)
    assert text in str(raised.value)
    rig.katas.begin("trainer", ONE, 100)


def test_devices(rig: Rig) -> None:
    first = rig.katas.allow(DEVICE)
    assert rig.katas.allow(replace(DEVICE, pod="x")).uuid == first.uuid
    with pytest.raises(KataError, match="no vGPU was asked for"):
        rig.katas.allow(replace(DEVICE, name="none", vgpus=()))
    with pytest.raises(KataError, match=r"vGPU name '\.\./x'"):
        rig.katas.allow(replace(DEVICE, name="../x"))
    with pytest.raises(KataError, match="has allowed a Kata device 'none'"):
        rig.katas.disallow("none")
    rig.katas.disallow("trainer")
    assert (rig.store.devices, rig.places.tokens) == ({}, {})


@pytest.mark.parametrize(
    "change",
    [{"device": "/"}, {"container": {}}, {"hypervisor": {"kind": 3}}, {"hypervisor": None}, {}],
)
def test_records_that_make_no_sense(change: dict[str, Any]) -> None:
    record = {**KataUse("trainer", ONE, QEMU).as_dict(), **change}
    if not change:
        del record["container"]
    with pytest.raises(ValueError, match=r"."):
        KataUse.from_dict(record)
