"""GpuSource port: NVIDIA cards, through NVML (nvidia-ml-py).

NVML is preloaded by absolute path: pynvml asks the loader for "libnvidia-ml.so.1", and a library
that is loaded already under that SONAME is what it then gets, whatever LD_LIBRARY_PATH says.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpupool.hostd.adapters.libraries import find_real
from gpupool.hostd.core.gpu import MIN_DRIVER_MAJOR, Card, Gpu, Inventory


class NvmlGpus:
    """Implements `ports.GpuSource`."""

    def __init__(self, libcuda: str = "", folders: Sequence[str] | None = None) -> None:
        self._libcuda = libcuda  # absolute path from the configuration; empty: look for it
        self._folders = folders  # where to look, and nowhere else; None: where drivers install

    def find(self, name: str) -> tuple[Path | None, list[str]]:
        """A library of the driver, and what was wrong with others of that name."""
        if self._folders is None:
            return find_real(name)
        return find_real(name, self._folders, ldconfig=False)

    def discover(self) -> Inventory:
        """The cards of this machine; notes say why there are none."""
        nvml_path, notes = self.find("libnvidia-ml.so.1")
        if nvml_path is None:
            return Inventory(
                (), "", "", (*notes, "no NVIDIA driver: libnvidia-ml.so.1 was not found")
            )
        library, library_notes = self._find_libcuda()
        notes += library_notes
        try:
            ctypes.CDLL(str(nvml_path))
            import pynvml  # after the line above, and only where there is a driver
        except (OSError, ImportError) as error:
            return Inventory((), "", "", (*notes, f"NVML cannot be loaded: {error}"))
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            return Inventory((), "", "", (*notes, f"NVML does not start: {error}"))
        try:
            return _look(pynvml, library, notes)
        except pynvml.NVMLError as error:
            return Inventory((), "", "", (*notes, f"NVML failed: {error}"))
        finally:
            pynvml.nvmlShutdown()

    def _find_libcuda(self) -> tuple[Path | None, list[str]]:
        if not self._libcuda:
            library, notes = self.find("libcuda.so.1")
            return library, notes if library else [
                *notes,
                "libcuda.so.1 was not found: install the NVIDIA driver",
            ]
        path = Path(self._libcuda)
        library, notes = find_real(path.name, [str(path.parent)], ldconfig=False)
        return library, notes if library else [
            *notes,
            f"libcuda = {self._libcuda!r} names no usable library",
        ]


class NvmlProcesses:
    """Implements `ports.ProcessMemory`."""

    def __init__(self, folders: Sequence[str] | None = None) -> None:
        self._gpus = NvmlGpus(folders=folders)

    def look(self) -> dict[str, dict[int, int]]:
        """By UUID and process id. Nothing where NVML does not tell, as in containers with process
        ids of their own, whose ids the driver does not know.
        """
        nvml_path, _ = self._gpus.find("libnvidia-ml.so.1")
        if nvml_path is None:
            return {}
        try:
            ctypes.CDLL(str(nvml_path))
            import pynvml  # as in discover()
        except (OSError, ImportError):
            return {}
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return {}
        try:
            return _processes(pynvml)
        finally:
            pynvml.nvmlShutdown()


def _processes(nvml: Any) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            found[str(nvml.nvmlDeviceGetUUID(handle))] = {
                int(one.pid): int(one.usedGpuMemory)
                for one in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                if one.usedGpuMemory is not None
            }
        except nvml.NVMLError:  # the others still tell; discover() says what is wrong with it
            continue
    return found


def _look(nvml: Any, library: Path | None, notes: list[str]) -> Inventory:
    version = str(nvml.nvmlSystemGetDriverVersion())
    if int(version.split(".")[0]) < MIN_DRIVER_MAJOR:
        notes.append(
            f"NVIDIA driver {version} is too old: gpupool needs {MIN_DRIVER_MAJOR} (CUDA 12.4) or "
            "later"
        )
        return Inventory((), "", version, tuple(notes))
    gpus: list[Gpu] = []
    handles: dict[str, Any] = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
            handles[str(nvml.nvmlDeviceGetUUID(handle))] = handle
            gpus.append(
                Gpu(
                    uuid=str(nvml.nvmlDeviceGetUUID(handle)),
                    name=str(nvml.nvmlDeviceGetName(handle)),
                    memory_mib=int(nvml.nvmlDeviceGetMemoryInfo(handle).total) >> 20,
                    source="nvidia",
                    index=index,
                    pci_bus_id=str(nvml.nvmlDeviceGetPciInfo(handle).busId),
                    compute_capability=f"{major}.{minor}",
                    card=_card(nvml, handle),
                )
            )
        except nvml.NVMLError as error:  # one card that fell off the bus must not hide the others
            notes.append(f"GPU {index}: {error}")
    if not gpus:
        notes.append("the NVIDIA driver is there but shows no GPU")
    gpus = [
        replace(gpu, card=replace(gpu.card, peers=_peers(nvml, handles, gpu.uuid))) for gpu in gpus
    ]
    return Inventory(
        tuple(gpus) if library else (),
        str(library or ""),
        version,
        tuple(notes),
        _told(nvml, lambda: nvml.nvmlSystemGetCudaDriverVersion_v2()) or 0,
    )


def _told(nvml: Any, ask: Callable[[], Any]) -> int | None:
    """The number, or None where this card or this driver does not tell."""
    try:
        return int(ask())
    except (nvml.NVMLError, AttributeError):  # pynvml older than the question
        return None


def _peers(nvml: Any, handles: dict[str, Any], uuid: str) -> tuple[tuple[str, ...], ...]:
    """Whom a card reaches directly, by nvmlGpuP2PCapsIndex_t 0 to 4."""

    def reaches(other: str, kind: int) -> bool:
        ask = lambda: nvml.nvmlDeviceGetP2PStatus(handles[uuid], handles[other], kind)  # noqa: E731
        return other != uuid and _told(nvml, ask) == 0  # NVML_P2P_STATUS_OK

    return tuple(tuple(one for one in handles if reaches(one, kind)) for kind in range(5))


def _card(nvml: Any, handle: Any) -> Card:
    def told(name: str, *arguments: int, pick: str = "") -> int | None:
        def ask() -> Any:
            answer = getattr(nvml, name)(handle, *arguments)
            return getattr(answer, pick) if pick else answer

        return _told(nvml, ask)

    def reserved() -> Any:
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).reserved

    def multiprocessors() -> Any:
        return nvml.nvmlDeviceGetAttributes_v2(handle).multiprocessorCount

    # The two values of nvmlClockType_t: NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2 (nvml.h).
    return Card(
        memory_bytes=told("nvmlDeviceGetMemoryInfo", pick="total"),
        reserved_bytes=_told(nvml, reserved),
        pci_device_id=told("nvmlDeviceGetPciInfo", pick="pciDeviceId"),
        pci_subsystem_id=told("nvmlDeviceGetPciInfo", pick="pciSubSystemId"),
        architecture=told("nvmlDeviceGetArchitecture"),
        brand=told("nvmlDeviceGetBrand"),
        multiprocessors=_told(nvml, multiprocessors),
        cores=told("nvmlDeviceGetNumGpuCores"),
        memory_bus_bits=told("nvmlDeviceGetMemoryBusWidth"),
        max_sm_clock_mhz=told("nvmlDeviceGetMaxClockInfo", 1),
        max_memory_clock_mhz=told("nvmlDeviceGetMaxClockInfo", 2),
        max_pcie_generation=told("nvmlDeviceGetMaxPcieLinkGeneration"),
        max_pcie_width=told("nvmlDeviceGetMaxPcieLinkWidth"),
        ecc_enabled=told("nvmlDeviceGetCurrentEccMode"),
        persistence_enabled=told("nvmlDeviceGetPersistenceMode"),
    )
