"""Where a GPU goes that is seen for the first time, and which are left alone."""

from __future__ import annotations

import pytest

from gpupool.hostd.core.gpu import Gpu, Inventory
from gpupool.hostd.core.pool import NativeKind, PoolState
from gpupool.hostd.core.pool_ports import CdiDevice
from gpupool.hostd.core.pools import PoolRefusedError, PoolSettings
from tests.fakes.pool_rig import OTHER, UUID, Rig, Running, check_settled

VFIO = NativeKind.VFIO


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def running(rig: Rig) -> Running:
    return rig.start()


@pytest.mark.parametrize("kind", NativeKind)
def test_gpus_that_start_native(kind: NativeKind) -> None:
    named = (UUID, "00000000:2B:00.0")  # by UUID and by PCI address
    rig = Rig(settings=PoolSettings(native=named, native_kind=kind))
    rig.users.on = {3: (UUID,)}  # of an earlier hostd
    running = rig.start()
    running.go()
    assert len(running.offered()) == 6
    assert running.gpu().state is PoolState.DRAINING
    assert running.gpu(OTHER).state is PoolState.NATIVE
    rig.users.on.clear()
    running.go()
    assert check_settled(running) is PoolState.NATIVE
    for uuid in (UUID, OTHER):
        running.ask("pooled", uuid=uuid)
    running.go()
    later = rig.start()  # what was chosen afterwards counts
    later.go()
    assert {check_settled(later, uuid) for uuid in (UUID, OTHER)} == {PoolState.POOLED}


def test_what_kind_is_meant_where_none_is_named() -> None:
    running = Rig(settings=PoolSettings(native_kind=VFIO)).start()
    running.ask("native")
    running.ask("native", NativeKind.CONTAINER, uuid=OTHER)
    running.go()
    assert (running.gpu().kind, running.gpu(OTHER).kind) == (VFIO, NativeKind.CONTAINER)
    running.ask("native", uuid=OTHER)  # as it is already
    assert check_settled(running, OTHER) is PoolState.NATIVE


def test_all_start_native() -> None:
    rig = Rig(settings=PoolSettings(default="native"))
    running = rig.start()
    running.go()
    assert running.offered() == set()
    assert running.pools.see(rig.gpus.discover()).notes[0].endswith("given out whole")


def test_the_software_gpu_does_not_stand_in_for_cards_that_are_away(running: Running) -> None:
    for uuid in [one.uuid for one in running.pools.gpus]:
        running.ask("native", VFIO, uuid=uuid)
    running.go()
    software = Inventory((Gpu("GPU-soft", "Software", 1024, "software", 0),), "/lib/soft.so")
    assert running.pools.see(software).gpus == ()
    assert "GPU-soft" not in {one.uuid for one in running.pools.gpus}


def test_a_software_gpu_rehearses_with_containers_only(rig: Rig) -> None:
    running = rig.start()
    soft = Gpu("GPU-soft", "Software", 1024, "software", 0, pci_bus_id="00000000:0A:00.0")
    rig.gpus.inventory = Inventory((soft,), "/lib/soft.so")
    rig.pci.add_card("0000:0a:00.0")  # so that the driver shows it
    running.pools.see(rig.gpus.inventory)
    with pytest.raises(PoolRefusedError, match="is a software GPU"):
        running.ask("native", VFIO, uuid="GPU-soft")
    running.ask("native", uuid="GPU-soft")
    running.go()
    assert rig.cdi.devices["GPU-soft"].nodes == ()
    assert "a name only" in running.pools.operations[-1].progress
    running.ask("pooled", uuid="GPU-soft")
    running.go()
    assert running.gpu("GPU-soft").state is PoolState.POOLED
    assert rig.cdi.devices == {}


@pytest.mark.parametrize("private", [False, True])
def test_a_cdi_device_that_is_there_already(private: bool) -> None:
    rig = Rig(settings=PoolSettings(private=private))
    rig.cdi.devices[UUID] = CdiDevice(UUID, ("/dev/nvidia0",))
    running = rig.start()
    # The system's hostd has lost its state; one user's hostd leaves the system's alone.
    assert (UUID in running.offered(), UUID in rig.cdi.devices) == (not private, private)
    notes = running.pools.see(rig.gpus.discover()).notes
    assert (f"GPU {UUID}: it is given out whole, by another hostd" in notes) is private
    rig.cdi.devices.clear()
    assert UUID in running.offered()
