"""Virtual machines: who may have what, CIDs, doors, and that release leaves nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from gpupool.hostd.api.metrics import HostCollector
from gpupool.hostd.core.admission import Door, Refusal, of_vm
from gpupool.hostd.core.allocation import NoPlace
from gpupool.hostd.core.host import Host
from gpupool.hostd.core.peer import Peer, owner_of
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.session import Session
from gpupool.hostd.core.vgpu import Quota, SharePolicy, Vgpu, VgpuMode
from gpupool.hostd.core.vgpus import Vgpus
from gpupool.hostd.core.vm import Vm, VmError, VmOrder, VmRight, VmState, VmVgpu
from gpupool.hostd.core.vms import Vms, VmSettings
from gpupool.wire.hello import TransportKind
from gpupool.wire.query import Query
from tests.fakes.vms import FakePlaces, FakeVmStore
from tests.hostd.test_host import DOOR, HELLO, Machine
from tests.hostd.test_vgpus import USABLE, got, machine, nothing_left

A = "0b0c0d0e-0000-4000-8000-00000000000a"
B = "0b0c0d0e-0000-4000-8000-00000000000b"
RIGHT = VmRight(A, "web", "acme", compute_percent=100, memory_mib=20000, vgpus=4)
VSOCK = frozenset({TransportKind.VSOCK})


@dataclass
class Rig:
    """One host, its fakes kept when hostd restarts."""

    machine: Machine = field(default_factory=machine)
    store: FakeVmStore = field(default_factory=FakeVmStore)
    places: FakePlaces = field(default_factory=FakePlaces)
    settings: VmSettings = VmSettings(relay=True, window_mib=1024)  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        self.start()
        for uuid in (A, B):
            self.vms.rights.allow(replace(RIGHT, uuid=uuid))

    def start(self) -> None:
        """A hostd, as after a start."""
        one = self.machine
        self.host: Host = one.host()
        self.vgpus = Vgpus(self.host, one.pages, one.vgpus)
        self.vms = Vms(self.host, self.vgpus, self.store, self.places, one.clock, self.settings)
        self.host.adopt()
        self.vms.adopt()

    def door(self, uuid: str, **more: Any) -> tuple[Door, Peer]:
        """As a client of that VM finds it at its socket."""
        name = f"unix:/run/gpupool/vms/{uuid}/vsock_9177"
        return self.vms.place(Door(name, VSOCK, b"", vm=uuid, **more), Peer(pid=9, uid=0))

    def client(self, uuid: str, vgpu: str = "") -> Session | Refusal | Any:
        """A program in that VM."""
        door, peer = self.door(uuid)
        hello = of_vm(replace(HELLO, vgpu=vgpu, transport=TransportKind.VSOCK), door)
        if isinstance(hello, Refusal):
            return hello
        return self.host.open(hello, peer, door, 7)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def share(percent: int, mib: int = 1000, mode: VgpuMode = VgpuMode.RESERVED) -> VmVgpu:
    return VmVgpu(Quota(percent, mib), mode)


def order(uuid: str = A, *wanted: VmVgpu, **more: Any) -> VmOrder:
    return VmOrder(uuid, f"web-{uuid[-1:]}", wanted or (share(25),), **more)


def stopped(rig: Rig, session: Session, *, kill: bool) -> bool:
    """Whether its worker was told so."""
    told = [(process.pid, how) for process, how in rig.machine.workers.stopped]
    return (session.worker_pid, kill) in told


def test_a_domain_gets_its_vgpu_and_its_clients_use_it(rig: Rig) -> None:
    vm = rig.vms.prepare(order())
    assert (vm.state, vm.tenant, vm.cid, vm.relay) == (VmState.PREPARED, "acme", 4096, True)
    assert rig.places.there == {A}
    (vgpu,) = rig.vms.vgpus_of(A)
    assert (vgpu.name, vgpu.quota, vgpu.mode) == ("web-a", Quota(25, 1000), VgpuMode.RESERVED)
    session = got(rig.client(A))
    assert (session.vgpu, session.compute_percent) == ("web-a", 25)
    assert (session.owner, session.pid) == (f"vm {A}", HELLO.pid)  # not the relay's
    assert rig.vms.facts(vm).sessions == (session.id,)
    assert rig.vms.release(A)
    assert not rig.vms.release(A)  # idempotent
    assert rig.host.sessions[0].state.value == "ending"
    rig.machine.workers.end(session.id)
    assert (rig.places.there, rig.store.records) == (set(), {})
    assert nothing_left(rig.machine)


def test_a_session_that_does_not_end_is_killed(rig: Rig) -> None:
    rig.vms.prepare(order())
    session = got(rig.client(A))
    rig.vms.release(A)
    assert stopped(rig, session, kill=False)
    rig.machine.clock.pass_time(20)
    assert stopped(rig, session, kill=True)


def test_nobody_else_uses_it(rig: Rig) -> None:
    rig.vms.prepare(order(A))
    rig.vms.prepare(order(B))
    refused = rig.client(B, "web-a")
    assert isinstance(refused, Refusal)
    assert "has no vGPU 'web-a'; it has web-b" in refused.text
    local = rig.host.open(replace(HELLO, vgpu="web-a"), Peer(pid=4, uid=0), DOOR, 7)
    assert isinstance(local, Refusal)
    assert "there is no vGPU 'web-a' here" in local.text
    one, other = got(rig.client(A)), got(rig.client(B, "~key"))
    assert (one.vgpu, other.vgpu) == ("web-a", "web-b")
    assert one.tenant_number != other.tenant_number
    door_a, door_b = rig.door(A), rig.door(B)
    assert owner_of(door_a[1], door_a[0]) != owner_of(door_b[1], door_b[0])


def test_what_a_guest_cannot_ask_for(rig: Rig) -> None:
    rig.vms.prepare(order())
    door, _ = rig.door(A)
    for asking in (
        replace(HELLO, compute_percent=90),
        replace(HELLO, memory_mib=5),
        replace(HELLO, policy=1),
        Query(compute_percent=90),
    ):
        refused = of_vm(asking, door)  # type: ignore[type-var]  # a union is neither; each is
        assert isinstance(refused, Refusal)
        assert "its vGPU has its own" in refused.text
    assert of_vm(Query(), door) == Query()
    assert of_vm(HELLO, DOOR) is HELLO


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ((share(60), share(60)), "asks for 120% compute and may have 100%"),
        ((share(10), share(10, 19001)), "asks for 20001 MiB of memory and may have 20000 MiB"),
        ((share(10, 0),), "asks for unlimited memory and may have 20000 MiB"),
        ((share(1),) * 5, "asks for 5 vGPUs and may have 4"),
        ((VmVgpu(Quota(0, 10, SharePolicy.HARD)),), "policy hard was asked for without"),
        ((share(1),) * 17, "17 vGPUs were asked for"),
    ],
)
def test_metadata_is_a_request_and_no_right(rig: Rig, wanted: Any, text: str) -> None:
    with pytest.raises(VmError, match=text):
        rig.vms.prepare(order(A, *wanted))
    rig.vms.prepare(order(A))
    with pytest.raises(VmError, match=text):
        rig.vms.change(A, wanted)
    assert len(rig.vms.vgpus_of(A)) == 1


def test_who_is_not_in_the_map_is_refused(rig: Rig) -> None:
    rig.vms.rights.disallow(A)
    with pytest.raises(VmError, match=r"domain web-a asks for a vGPU, and nobody .* vm allow"):
        rig.vms.prepare(order(A))
    with pytest.raises(VmError, match="is not allowed anything"):
        rig.vms.rights.disallow(A)
    assert (rig.store.records, rig.places.there) == ({}, set())


def test_rights_of_the_configuration_are_changed_there() -> None:
    right = VmRight(A, compute_percent=50, configured=True)
    one = Rig.__new__(Rig)
    one.machine, one.store, one.places = machine(), FakeVmStore(), FakePlaces()
    one.settings = VmSettings(rights=(right,))
    one.start()
    for change in (lambda: one.vms.rights.disallow(A), lambda: one.vms.rights.allow(RIGHT)):
        with pytest.raises(VmError, match="stands in hostd's configuration"):
            change()
    assert one.vms.rights.all() == (right,)


def test_the_last_share_goes_to_the_first_who_asks(rig: Rig) -> None:
    rig.vms.prepare(order(A, share(60)))
    with pytest.raises(VmError) as caught:
        rig.vms.prepare(order(B, share(50)))
    assert "domain web-b: 50% compute and 1000 MiB was asked for; left is" in str(caught.value)
    assert "40%" in str(caught.value)
    assert (set(rig.store.records), rig.places.there) == ({A}, {A})
    rig.vms.release(A)
    rig.vms.prepare(order(B, share(50)))


def test_prepared_again_is_no_error(rig: Rig) -> None:
    first = rig.vms.prepare(order())
    vgpus = rig.vms.vgpus_of(A)
    assert rig.vms.prepare(order()) == first
    assert rig.vms.vgpus_of(A) == vgpus
    rig.vms.started(A, 0)
    session = got(rig.client(A))  # its release was missed
    assert rig.vms.prepare(order()).state is VmState.PREPARED
    assert stopped(rig, session, kill=False)
    changed = rig.vms.prepare(order(A, share(70)))
    assert [one.quota for one in rig.vms.vgpus_of(A)] == [Quota(70, 1000)]
    assert changed.wanted == (share(70),)


def test_what_ended_while_no_hostd_was_there_is_freed(rig: Rig) -> None:
    for uuid in (A, B):
        rig.vms.prepare(order(uuid))
        rig.vms.started(uuid, 0)
    rig.places.over = {A}
    rig.start()
    assert [facts.vm.uuid for facts in rig.vms.all()] == [B]
    assert rig.places.there == {B}


def test_what_fails_on_the_way_leaves_nothing(rig: Rig) -> None:
    rig.places.fail = "no room in /dev/shm"
    with pytest.raises(PortError, match="no room"):
        rig.vms.prepare(order())
    assert (rig.store.records, rig.places.there, rig.vms.all()) == ({}, set(), ())
    assert rig.machine.vgpus.records == {}


@pytest.mark.parametrize("cid", [1, 2, 1 << 32, -1, 0xFFFF_FFFF])
def test_reserved_cids_are_refused(rig: Rig, cid: int) -> None:
    with pytest.raises(VmError, match="allowed for a virtual machine is 3 to"):
        rig.vms.prepare(order(cid=cid))
    rig.vms.prepare(order())
    with pytest.raises(VmError, match="allowed for a virtual machine is 3 to"):
        rig.vms.started(A, cid)
    with pytest.raises(VmError, match="allowed for a virtual machine is 3 to"):
        rig.vms.rights.allow(replace(RIGHT, cid=cid))


def kernel(rig: Rig) -> Rig:
    """The kernel is its VMs' vsock device."""
    rig.settings = replace(rig.settings, relay=False)
    rig.start()
    return rig


def come(rig: Rig, cid: int, *, vms_only: bool = True) -> Door:
    door = Door("vsock://any:9177", VSOCK, b"", vms_only=vms_only)
    return rig.vms.place(door, Peer(address=f"vsock:{cid}:1024"))[0]


def test_a_cid_is_one_domains_until_its_release(rig: Rig) -> None:
    kernel(rig)
    assert rig.vms.prepare(order(A, cid=77)).cid == 77
    assert come(rig, 77).vm == A
    with pytest.raises(VmError, match=r"cid 77 is domain web-a's \(.*\) until that is released"):
        rig.vms.prepare(order(B, cid=77))
    assert rig.vms.prepare(order(B)).cid == 0  # its hypervisor chooses
    with pytest.raises(VmError, match="cid 77 is domain web-a's"):
        rig.vms.started(B, 77)
    rig.vms.started(B, 3)
    assert (come(rig, 3).vm, come(rig, 3).vgpus) == (B, ("web-b",))
    with pytest.raises(VmError, match="was prepared with cid 3, not 4"):
        rig.vms.started(B, 4)
    rig.vms.release(A)
    assert "vsock:77 is no virtual machine" in come(rig, 77).closed
    assert rig.vms.prepare(order(A, cid=78)).cid == 78


def test_a_cid_that_another_domain_has_later_opens_nothing_of_the_first(rig: Rig) -> None:
    kernel(rig)
    rig.vms.prepare(order(A, cid=77))
    session = rig.client(A)
    assert isinstance(session, Session)
    rig.vms.release(A)
    assert rig.machine.workers.stopped  # its sessions end with it, before anybody else has its CID
    rig.vms.prepare(order(B, cid=77))
    assert (come(rig, 77).vm, come(rig, 77).vgpus) == (B, ("web-b",))
    assert rig.vms.sessions_of(B) == ()


def test_unknown_cids_are_refused_where_only_vms_come_in(rig: Rig) -> None:
    kernel(rig)
    rig.vms.prepare(order())  # its CID is not known yet
    for cid in (0, 1, 2, 3, 99):
        assert come(rig, cid).closed
    open_door = come(rig, 99, vms_only=False)  # an [[endpoint]] that the configuration names
    assert (open_door.closed, open_door.vm) == ("", "")


def test_a_relays_cid_means_nothing_to_the_kernel(rig: Rig) -> None:
    vm = rig.vms.prepare(order())
    assert come(rig, vm.cid).closed
    other = rig.vms.prepare(order(B))
    assert other.cid == vm.cid + 1


def test_a_right_can_say_the_cid(rig: Rig) -> None:
    rig.vms.rights.allow(replace(RIGHT, cid=50))
    assert rig.vms.prepare(order()).cid == 50
    rig.vms.release(A)
    with pytest.raises(VmError, match="has cid 51, and its right says 50"):
        rig.vms.prepare(order(cid=51))
    with pytest.raises(VmError, match=f"cid 50 is domain {A}'s"):
        rig.vms.rights.allow(replace(RIGHT, uuid=B, cid=50))


@pytest.mark.parametrize("uuid", ["", "web", A.upper(), f"{A}/..", f"../{A}", A + "\n"])
def test_a_uuid_names_files_so_nothing_else_will_do(rig: Rig, uuid: str) -> None:
    for action in (
        lambda: rig.vms.prepare(order(uuid)),
        lambda: rig.vms.release(uuid),
        lambda: rig.vms.rights.allow(replace(RIGHT, uuid=uuid)),
    ):
        with pytest.raises(VmError, match="allowed is a domain's UUID"):
            action()


@pytest.mark.parametrize(
    ("why", "sizes_mib"),
    [("powers of two", (-1, 3, 100)), ("one needs 64 MiB", (1, 32)), ("up to 1024", (2048,))],
)
def test_a_windows_size(rig: Rig, why: str, sizes_mib: tuple[int, ...]) -> None:
    for size_mib in sizes_mib:
        with pytest.raises(VmError, match=why):
            rig.vms.prepare(order(window_mib=size_mib))
    assert rig.vms.prepare(order(window_mib=64)).window_mib == 64


def test_a_closed_door_says_why(rig: Rig) -> None:
    door, _ = rig.door(A)
    assert f"{A} is no virtual machine that this host has prepared" in door.closed
    assert len(door.closed.encode()) <= 255
    rig.vms.prepare(order(A))
    rig.vms.change(A, ())
    refused = rig.client(A)
    assert isinstance(refused, Refusal)
    assert "this virtual machine has no vGPU" in refused.text


def test_names_that_are_taken_or_strange(rig: Rig) -> None:
    rig.vgpus.create(Vgpu(0, Quota(), "web-a"))
    rig.vms.prepare(order(A, share(10), share(10)))
    assert [one.name for one in rig.vms.vgpus_of(A)] == [f"vm-{A}", f"vm-{A}-2"]
    rig.vms.prepare(VmOrder(B, "7 ü/web" * 20, (share(10),)))
    (vgpu,) = rig.vms.vgpus_of(B)
    assert vgpu.name.startswith("vm-7-web7")
    rig.vms.release(B)
    rig.vms.prepare(VmOrder(B, "☃", (share(10),)))
    assert [one.name for one in rig.vms.vgpus_of(B)] == ["vm"]


def test_several_vgpus_are_on_several_gpus() -> None:
    rig = Rig(machine(3))
    rig.vms.prepare(order(A, share(30), share(30), share(30)))
    assert len({one.gpu for one in rig.vms.vgpus_of(A)}) == 3
    assert [one.name for one in rig.vms.vgpus_of(A)] == ["web-a", "web-a-2", "web-a-3"]


def test_a_session_has_all_vgpus_of_its_vm(rig: Rig) -> None:
    rig = Rig(machine(3))
    rig.vms.prepare(order(A, share(30), share(20, mode=VgpuMode.ON_DEMAND), share(10, 500)))
    session = got(rig.client(A))
    assert len(set(session.devices)) == 3
    uuids = [gpu.uuid for gpu in rig.machine.inventory.gpus]
    assert list(session.devices) == uuids  # in NVML's order
    assert sorted(session.vgpu.split(",")) == ["web-a", "web-a-2", "web-a-3"]
    rows = {row.quota.compute_percent for row in rig.machine.pages.vgpus.values()}
    assert rows == {30, 20, 10}
    door, peer = rig.door(A)
    report = rig.host.report(Query(pid=HELLO.pid), peer, door, "1")
    assert not isinstance(report, Refusal)
    assert sorted(gpu.compute_percent for gpu in report.gpus) == [10, 20, 30]
    asked = rig.host.report(Query(), peer, door, "1")  # a process without a session
    assert not isinstance(asked, Refusal)
    assert [gpu.compute_percent for gpu in asked.gpus] == [
        gpu.compute_percent for gpu in report.gpus
    ]
    one = got(rig.client(A, "web-a-3"))
    assert (one.vgpu, len(one.devices)) == ("web-a-3", 1)
    wanted = (share(40), share(25, mode=VgpuMode.ON_DEMAND), share(15, 500))
    rig.vms.change(A, wanted)  # while both run
    rig.start()
    first = next(v for v in rig.vms.vgpus_of(A) if v.id == session.seats[0].vgpu)
    assert rig.host.sessions[0].quota == first.quota
    rig.vms.release(A)
    for each in (session, one):
        rig.machine.workers.end(each.id)
    assert nothing_left(rig.machine)


def test_a_session_has_one_vgpu_on_a_gpu(rig: Rig) -> None:
    rig.vms.prepare(order(A, share(30), share(20)))
    assert got(rig.client(A)).vgpu == "web-a"
    assert got(rig.client(A, "web-a-2")).vgpu == "web-a-2"
    rig.vms.change(A, (share(30), share(20), share(10, mode=VgpuMode.ON_DEMAND)))
    assert got(rig.client(A)).vgpu == "web-a"
    two = Rig(machine(2))
    two.vms.prepare(order(A, share(30), share(50, mode=VgpuMode.ON_DEMAND)))
    two.vms.prepare(order(B, share(60)))  # on the other GPU
    refused = two.client(A)
    assert isinstance(refused, NoPlace)
    assert refused.may_wait
    assert "50% compute" in refused.text
    two.vms.release(B)
    assert got(two.client(A)).vgpu == "web-a,web-a-2"


def test_live_changes(rig: Rig) -> None:
    rig.vms.prepare(order(A, share(30), share(60)))
    session = got(rig.client(A, "web-a-2"))
    rig.vms.change(A, (share(55), share(40)))  # the second makes room for the first
    assert [one.quota.compute_percent for one in rig.vms.vgpus_of(A)] == [55, 40]
    assert rig.host.sessions[0].compute_percent == 40
    with pytest.raises(VmError, match=f"vGPU web-a-2 is used by session {session.id}"):
        rig.vms.change(A, (share(55),))
    with pytest.raises(VmError, match="that takes a new start"):
        rig.vms.change(A, (share(55, mode=VgpuMode.ON_DEMAND), share(40)))
    before = rig.vms.vgpus_of(A)
    rig.vms.rights.allow(replace(RIGHT, memory_mib=0))
    with pytest.raises(VmError, match=f"1% compute and {USABLE} MiB was asked for"):
        rig.vms.change(A, (share(50), share(40), share(1, USABLE)))
    assert rig.vms.vgpus_of(A) == before
    rig.machine.workers.end(session.id)
    vm = rig.vms.change(A, (share(55),))
    assert (vm.wanted, len(rig.vms.vgpus_of(A))) == ((share(55),), 1)
    with pytest.raises(VmError, match="is not prepared here"):
        rig.vms.change(B, ())


def test_a_restart_finds_everything(rig: Rig) -> None:
    rig.vms.prepare(order(A, window_mib=64))
    rig.vms.started(A, 0)
    rig.vms.prepare(order(B))
    before = rig.vms.all()
    session = got(rig.client(A))
    rig.vms.told_health(A, "ready", "")
    rig.start()
    assert [facts.vm for facts in rig.vms.all()] == [facts.vm for facts in before]
    assert rig.vms.facts(before[0].vm).sessions == (session.id,)
    assert got(rig.client(A)).vgpu == "web-a"
    assert len(rig.vms.rights.all()) == 2


def test_a_start_clears_up_what_no_vm_has(rig: Rig) -> None:
    rig.vms.prepare(order(A))
    session = got(rig.client(A))
    rig.store.records.clear()  # as after a reboot, that vGPUs survive
    rig.places.there.add(B)
    rig.start()
    assert rig.places.there == set()
    assert rig.machine.vgpus.records == {}
    assert stopped(rig, session, kill=False)


@pytest.mark.parametrize("key", ["uuid", "wanted", "cid", "state"])
def test_damaged_records(rig: Rig, key: str) -> None:
    record = rig.vms.prepare(order()).as_dict()
    assert Vm.from_dict(record) == rig.vms.get(A)
    with pytest.raises(ValueError, match=r".+"):
        Vm.from_dict({**record, key: [{"compute_percent": "x"}]})
    del record[key]
    with pytest.raises(ValueError, match="not a record of a VM"):
        Vm.from_dict(record)


def test_damaged_rights() -> None:
    assert VmRight.from_dict(RIGHT.as_dict()) == RIGHT
    for wrong in ({}, {"uuid": 3}, {"uuid": A, "vgpus": -1}, {"uuid": A, "vgpus": True}):
        with pytest.raises(ValueError, match=r".+"):
            VmRight.from_dict(wrong)


def test_hello_is_a_hello() -> None:
    """of_vm keeps everything else of what was asked."""
    door = Door("x", VSOCK, b"", vm=A, vgpus=("web",))
    assert of_vm(HELLO, door) is HELLO
    assert of_vm(replace(HELLO, vgpu="~key"), door) == HELLO
    named = replace(HELLO, vgpu="web")
    assert of_vm(named, door) is named


def test_metrics_count_them_and_name_none(rig: Rig) -> None:
    rig.vms.prepare(order(A))
    rig.vms.started(A, 0)
    rig.vms.prepare(order(B))
    rig.vms.told_health(B, "failed", "no window")
    families = {one.name: one for one in HostCollector(rig.host, "1", rig.vms).collect()}
    states = {one.labels["state"]: one.value for one in families["gpupool_vms"].samples}
    assert states == {"preparing": 0, "prepared": 1, "started": 1, "releasing": 0}
    agents = {one.labels["health"]: one.value for one in families["gpupool_vm_agents"].samples}
    assert agents == {"unknown": 1, "ready": 0, "failed": 1}
    assert "gpupool_vms" not in {one.name for one in HostCollector(rig.host, "1").collect()}
