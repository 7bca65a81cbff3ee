"""Which GPUs are given out."""

from __future__ import annotations

from gpupool.hostd.adapters.gpus import ChosenGpus
from gpupool.hostd.core.gpu import Gpu, Inventory
from tests.fakes.gpus import FakeGpus

SOFTWARE = Inventory((Gpu("GPU-s", "software", 1024, "software", 0),), "/lib/soft.so", "software")


def choose(choice: str, nvidia: str, *uuids: str) -> Inventory:
    """What is found on a machine with these NVIDIA cards and a software GPU."""
    return ChosenGpus(choice, FakeGpus.from_file(nvidia), FakeGpus(SOFTWARE), uuids).discover()


def test_auto_prefers_cards() -> None:
    assert len(choose("auto", "h100x8.json").gpus) == 8
    assert choose("auto", "h100x8.json").library.endswith("libcuda.so.1")


def test_auto_without_cards_says_why_it_is_the_software_gpu() -> None:
    found = choose("auto", "none.json")
    assert found.gpus == SOFTWARE.gpus
    assert found.library == "/lib/soft.so"
    assert found.notes == ("no NVIDIA driver: libnvidia-ml.so.1 was not found",)


def test_nvidia_never_falls_back() -> None:
    assert choose("nvidia", "none.json").gpus == ()


def test_software_never_looks_for_cards() -> None:
    nvidia = FakeGpus.from_file("h100x8.json")
    assert ChosenGpus("software", nvidia, FakeGpus(SOFTWARE)).discover() == SOFTWARE
    assert nvidia.looks == 0


def test_only_the_named_ones() -> None:
    uuid = "GPU-00000003-1111-2222-3333-444455556666"
    found = choose("auto", "h100x8.json", uuid, "GPU-gone")
    assert [gpu.uuid for gpu in found.gpus] == [uuid]
    assert found.notes == ("GPU GPU-gone is named in `devices` but is not on this machine",)
