"""A GPU as hostd knows it, and the set of them that it gives out."""

from __future__ import annotations

from dataclasses import dataclass, field

MIN_DRIVER_MAJOR = (
    550  # CUDA 12.4: older drivers cannot tell a kernel's parameter layout (cuFuncGetParamInfo)
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical card, or the software GPU."""

    uuid: str  # "GPU-..." as NVML and nvidia-smi print it
    name: str
    memory_mib: int
    source: str  # "nvidia" or "software"
    index: int  # in the order of its source
    pci_bus_id: str = ""  # empty for the software GPU
    compute_capability: str = ""  # "9.0"; empty when the source does not say


@dataclass(frozen=True, slots=True)
class Inventory:
    """What one look at the machine found."""

    gpus: tuple[Gpu, ...]
    library: str  # absolute path of the libcuda that workers load; empty when there is none
    driver_version: str = ""  # "580.95.05" or "software"
    notes: tuple[str, ...] = field(default=())  # why something was passed over, in words for people

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
        return Inventory(chosen, self.library, self.driver_version, self.notes + missing)
