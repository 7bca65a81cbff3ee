"""A GPU as hostd knows it, and the set of them that it gives out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

MIN_DRIVER_MAJOR = (
    550  # CUDA 12.4: older drivers cannot tell a kernel's parameter layout (cuFuncGetParamInfo)
)


@dataclass(frozen=True, slots=True)
class Card:
    """What NVML tells of a card that does not change with its load; None where it does not tell."""

    memory_bytes: int | None = None
    reserved_bytes: int | None = None  # of those, what the driver keeps for itself
    pci_device_id: int | None = None
    pci_subsystem_id: int | None = None
    architecture: int | None = None  # NVML_DEVICE_ARCH_*
    brand: int | None = None  # nvmlBrandType_t
    multiprocessors: int | None = None
    cores: int | None = None
    memory_bus_bits: int | None = None
    max_sm_clock_mhz: int | None = None
    max_memory_clock_mhz: int | None = None
    max_pcie_generation: int | None = None
    max_pcie_width: int | None = None
    ecc_enabled: int | None = None  # 1 or 0
    persistence_enabled: int | None = None  # 1 or 0
    # UUIDs of the cards it reaches directly: read, write, NVLink, atomics, PCI
    # (nvmlGpuP2PCapsIndex_t 0 to 4).
    peers: tuple[tuple[str, ...], ...] = ((), (), (), (), ())


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical card, or the software GPU."""

    uuid: str  # "GPU-..." as NVML and nvidia-smi print it
    name: str
    memory_mib: int
    source: str  # "nvidia" or "software"
    index: int  # in the order of its source
    pci_bus_id: str = ""  # as NVML writes it: "00000000:1B:00.0"
    compute_capability: str = ""  # "9.0"; empty when the source does not say
    card: Card = field(default=Card())


@dataclass(frozen=True, slots=True)
class Inventory:
    """What one look at the machine found."""

    gpus: tuple[Gpu, ...]
    library: str  # absolute path of the libcuda that workers load; empty when there is none
    driver_version: str = ""  # "580.95.05" or "software"
    notes: tuple[str, ...] = field(default=())  # why something was passed over, in words for people
    cuda_version: int = 0  # of that library, 13000 for 13.0; 0: not known

    def only(self, uuids: tuple[str, ...]) -> Inventory:
        """The same machine with just these GPUs; none named means all.

        A name that no GPU has becomes a note, since a card can be missing for a while.
        """
        if not uuids:
            return self
        chosen = tuple(gpu for gpu in self.gpus if gpu.uuid in uuids)
        known = {gpu.uuid for gpu in self.gpus}
        missing = tuple(
            f"GPU {uuid} is named in `devices` but is not on this machine"
            for uuid in uuids
            if uuid not in known
        )
        return replace(self, gpus=chosen, notes=self.notes + missing)
