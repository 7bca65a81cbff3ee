"""Cards as sysfs shows them, in a folder whose files do what the kernel's do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gpupool.hostd.adapters.pci_devices import SysfsPci
from gpupool.hostd.core.pool import PciFunction
from gpupool.hostd.core.pool_ports import Holder
from gpupool.hostd.core.ports import PortError
from tests.fakes.kernel import VFIO, FakeKernel

GPU, AUDIO, BRIDGE = "0000:1b:00.0", "0000:1b:00.1", "0000:00:01.0"
BEFORE = (PciFunction(GPU, "nvidia"), PciFunction(AUDIO, "snd_hda_intel"))


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    """A machine with one card."""
    one = FakeKernel(tmp_path)
    one.add_card(GPU, group=12)
    return one


@pytest.fixture
def pci(kernel: FakeKernel) -> SysfsPci:
    return SysfsPci(kernel.root, kernel.write)


def state(kernel: FakeKernel) -> list[tuple[str, str]]:
    """Driver and override of both functions."""
    return [(kernel.driver(one), kernel.override(one)) for one in (GPU, AUDIO)]


def give(pci: SysfsPci) -> None:
    """The whole card to vfio-pci."""
    for one in BEFORE:
        pci.claim(one)


def take(pci: SysfsPci) -> None:
    """And back."""
    for one in BEFORE:
        pci.restore(one)


def test_the_card_without_its_bridge(pci: SysfsPci) -> None:
    assert pci.functions(GPU) == BEFORE


def test_there_and_back(pci: SysfsPci, kernel: FakeKernel) -> None:
    give(pci)
    assert state(kernel) == [(VFIO, VFIO)] * 2
    assert kernel.driver(BRIDGE) == "pcieport"
    assert pci.nodes(GPU) == ("/dev/vfio/12", "/dev/vfio/vfio")
    assert pci.functions(GPU) == (PciFunction(GPU, VFIO, VFIO), PciFunction(AUDIO, VFIO, VFIO))
    take(pci)
    assert state(kernel) == [("nvidia", ""), ("snd_hda_intel", "")]
    assert pci.nodes(GPU) == ("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm")
    assert not (kernel.root / "dev/vfio/12").exists()


def test_twice_is_once(pci: SysfsPci, kernel: FakeKernel) -> None:
    give(pci)
    done = len(kernel.writes)
    give(pci)
    assert len(kernel.writes) == done
    take(pci)
    done = len(kernel.writes)
    take(pci)
    assert len(kernel.writes) == done


@pytest.mark.parametrize("way", [give, take])
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_every_write(
    tmp_path: Path, way: Callable[[SysfsPci], None], after: bool
) -> None:
    class Death(BaseException):
        pass

    at = 0
    while True:
        kernel = FakeKernel(tmp_path / str(at))
        kernel.add_card(GPU, group=12)
        pci = SysfsPci(kernel.root, kernel.write)
        if way is take:
            give(pci)
        last = len(kernel.writes) + at

        def write(path: Path, text: str, kernel: FakeKernel = kernel, last: int = last) -> None:
            if len(kernel.writes) == last and not after:
                raise Death
            kernel.write(path, text)
            if len(kernel.writes) == last + 1 and after:
                raise Death

        try:
            way(SysfsPci(kernel.root, write))
        except Death:
            way(pci)
            give(pci)
            assert state(kernel) == [(VFIO, VFIO)] * 2
            take(pci)
            assert state(kernel) == [("nvidia", ""), ("snd_hda_intel", "")]
            at += 1
            continue
        break
    assert at == 6  # override, unbind, bind: for two functions


def test_an_override_of_somebody_else_comes_back(pci: SysfsPci, kernel: FakeKernel) -> None:
    kernel.write(kernel.root / "sys/bus/pci/devices" / GPU / "driver_override", "nvidia")
    before = pci.functions(GPU)
    assert before[0] == PciFunction(GPU, "nvidia", "nvidia")
    for one in before:
        pci.claim(one)
    for one in before:
        pci.restore(one)
    assert state(kernel)[0] == ("nvidia", "nvidia")


def test_a_function_without_a_driver(pci: SysfsPci, kernel: FakeKernel) -> None:
    kernel.write(kernel.root / "sys/bus/pci/drivers/snd_hda_intel/unbind", AUDIO)
    before = pci.functions(GPU)
    assert before[1] == PciFunction(AUDIO, "")
    for one in before:
        pci.claim(one)
    assert state(kernel) == [(VFIO, VFIO)] * 2
    for one in before:
        pci.restore(one)
    assert state(kernel)[1] == ("", "")


def test_another_device_in_the_group(pci: SysfsPci, kernel: FakeKernel) -> None:
    kernel.add_device("0000:1c:00.0", "0x020000", "mlx5_core", 12)
    with pytest.raises(
        PortError, match=r"also holds 0000:1c:00.0 \(class 0x020000, driver mlx5_core"
    ):
        pci.functions(GPU)
    kernel.write(kernel.root / "sys/bus/pci/drivers/mlx5_core/unbind", "0000:1c:00.0")
    assert pci.functions(GPU) == BEFORE  # nobody's: it does not keep the group from a machine


def test_no_iommu(kernel: FakeKernel, pci: SysfsPci) -> None:
    (kernel.root / "sys/devices/pci0000:00" / GPU / "iommu_group").unlink()
    with pytest.raises(PortError, match="is in no IOMMU group: enable VT-d"):
        pci.functions(GPU)


def test_a_card_that_is_not_there(pci: SysfsPci) -> None:
    for ask in (pci.functions, pci.holders, pci.nodes, pci.obstacle):
        with pytest.raises(PortError, match="there is no PCI device 0000:99"):
            ask("0000:99:00.0")


def test_who_holds_it(pci: SysfsPci, kernel: FakeKernel) -> None:
    assert pci.holders(GPU) == ()
    kernel.open(812, "nvidia-persistenced", "/dev/nvidia0")
    kernel.open(900, "python3", "/dev/nvidiactl")  # is every card's
    kernel.open(900, "python3", "/dev/null")
    assert pci.holders(GPU) == (Holder(812, "nvidia-persistenced", "/dev/nvidia0"),)
    kernel.end(812)
    drm = kernel.root / "sys/devices/pci0000:00" / GPU / "drm" / "card1"
    drm.mkdir(parents=True)
    (kernel.root / "dev/dri").mkdir()
    (kernel.root / "dev/dri/card1").touch()
    kernel.open(901, "Xorg", "/dev/dri/card1")
    assert pci.holders(GPU) == (Holder(901, "Xorg", "/dev/dri/card1"),)
    assert "/dev/dri/card1" in pci.nodes(GPU)
    kernel.end(901)
    give(pci)
    kernel.open(950, "qemu-system-x86", "/dev/vfio/12")
    assert pci.holders(GPU) == (Holder(950, "qemu-system-x86", "/dev/vfio/12"),)


def test_who_holds_it_is_hidden(pci: SysfsPci, kernel: FakeKernel) -> None:
    if os.geteuid() == 0:
        pytest.skip("root sees everybody's descriptors")
    kernel.open(812, "x", "/dev/nvidia0")
    (kernel.root / "proc/812/fd").chmod(0)
    with pytest.raises(PortError, match="run hostd as root"):
        pci.holders(GPU)


def test_an_open_card_is_not_let_go(pci: SysfsPci, kernel: FakeKernel) -> None:
    kernel.open(812, "nvidia-persistenced", "/dev/nvidia0")
    with pytest.raises(PortError, match="has not returned"):
        pci.claim(BEFORE[0])
    kernel.end(812)
    take(pci)
    assert state(kernel) == [("nvidia", ""), ("snd_hda_intel", "")]


def test_obstacles(pci: SysfsPci, kernel: FakeKernel) -> None:
    assert pci.obstacle(GPU) == ""
    parameters = kernel.root / "sys/module/nvidia_drm/parameters"
    parameters.mkdir(parents=True)
    (parameters / "modeset").write_text("Y\n")
    assert pci.obstacle(GPU) == ""  # it has nothing of this card's
    (kernel.root / "sys/devices/pci0000:00" / GPU / "drm").mkdir()
    assert "modeset=0" in pci.obstacle(GPU)
    symbols = kernel.root / "proc/kallsyms"
    symbols.write_text("0000000000000000 t nvidia_modeset_resume\t[nvidia]\n")
    assert "modeset=0" in pci.obstacle(GPU)
    symbols.write_text(symbols.read_text() + "0000000000000000 t nvidia_modeset_remove\t[nvidia]\n")
    assert pci.obstacle(GPU) == ""  # this driver makes it close the card
    kernel.unload_driver(VFIO)
    assert "`modprobe vfio-pci`" in pci.obstacle(GPU)


def test_drivers_that_are_not_there(pci: SysfsPci, kernel: FakeKernel) -> None:
    give(pci)
    kernel.unload_driver("nvidia")
    with pytest.raises(PortError, match="driver nvidia is not loaded"):
        take(pci)
    assert kernel.driver(GPU) == ""
    kernel.load_driver("nvidia")
    take(pci)
    assert state(kernel) == [("nvidia", ""), ("snd_hda_intel", "")]


def test_no_device_files(pci: SysfsPci, kernel: FakeKernel) -> None:
    (kernel.root / "dev/nvidia0").unlink()
    with pytest.raises(PortError, match="nvidia-modprobe"):
        pci.nodes(GPU)
    assert pci.holders(GPU) == ()
