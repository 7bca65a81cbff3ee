"""`gpupool smi`: what nvidia-smi would show in a guest, asked of the guest's own NVML.

NVIDIA's nvidia-smi belongs to the driver, which a guest does not have. This goes the way that every
program goes: NVIDIA's Python binding on top of our libnvidia-ml.so.1, and from there to hostd.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gpupool.cli import parameters, run, table
from gpupool.hostd.adapters import native_files

DESCRIPTION = """\
Shows this guest's vGPUs as nvidia-smi would: memory (the quota, and what this guest uses of it),
utilisation, and this guest's processes. What other tenants do on the same cards is not shown.

Memory: what the guest's programs have allocated; the total is the quota (GPUPOOL_MEMORY_MIB or the
  host's default), or the card's memory without one.
Utilisation: the share of the last second in which this guest had work on the card.
Power, temperature and present clocks are the whole card's, and so not for a guest to see.

The host is the one that CUDA programs would use: --endpoint or GPUPOOL_ENDPOINT, else the system's
hostd, else this user's own. It needs no GPU, no driver and no hostd on this machine.
"""
EPILOG = """\
exit codes: 0 there is an answer; 1 there is none (the reason is on stderr)

examples:
  gpupool smi
  gpupool smi --json | jq '.gpus[].memory_used_bytes'
  gpupool run -- gpupool smi              of the hostd that `gpupool run` would use or start
  gpupool smi --endpoint tls://gpu7:9177 --token-file ~/.gpupool-token --tls-ca ~/gpu7.pem
"""

_MIB = 1 << 20


def main(
    as_json: Annotated[
        bool, typer.Option("--json", help="print JSON; what is not known or not told is null")
    ] = False,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="E",
            help="unix:/path/to/socket or tls://host:port",
            callback=parameters.checked(run.endpoint),
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="token for the endpoint (GPUPOOL_TOKEN_FILE)"),
    ] = None,
    tls_ca: Annotated[Path | None, typer.Option(metavar="FILE", help=run.TLS_CA)] = None,
    tls_fingerprint: Annotated[
        str | None, typer.Option(metavar="SHA256", help=run.TLS_FINGERPRINT)
    ] = None,
) -> int:
    """Prints it."""
    if endpoint is not None:
        os.environ["GPUPOOL_ENDPOINT"] = endpoint
    if token_file is not None:
        os.environ["GPUPOOL_TOKEN_FILE"] = str(token_file.absolute())
    os.environ.update(run.tls_variables(tls_ca, tls_fingerprint))
    nvml = _binding()
    if nvml is None:
        return 1
    try:
        nvml.nvmlInit()
        found = look(nvml)
    except nvml.NVMLError as error:  # the library itself has said why, in one line
        print(f"gpupool smi: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _show(found)
    return 0


def _binding() -> Any:
    """pynvml on our library; None when there is none, which is said."""
    native = native_files.locate()
    path = native.guest_dir / "libnvidia-ml.so.1" if native.guest_dir else None
    if path is None or not path.exists():
        print(
            f"gpupool smi: libnvidia-ml.so.1 was not found in {native.root}; run `gpupool doctor`",
            file=sys.stderr,
        )
        return None
    # A library that is loaded already under the name that pynvml asks for is what it gets.
    ctypes.CDLL(str(path))
    import pynvml  # after the line above

    return pynvml


def look(nvml: Any) -> dict[str, Any]:
    """Everything that is shown. Raises nvml.NVMLError when the host does not answer."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    version = nvml.nvmlSystemGetCudaDriverVersion_v2()
    return {
        "driver_version": nvml.nvmlSystemGetDriverVersion(),
        "cuda_version": f"{version // 1000}.{version % 1000 // 10}",
        "gpus": [_gpu(nvml, handle, index) for index, handle in enumerate(handles)],
        "processes": [
            process for index, handle in enumerate(handles) for process in _of(nvml, handle, index)
        ],
    }


def _told(nvml: Any, ask: Callable[[], Any]) -> Any:
    """The answer; None for what is not known or not told."""
    try:
        return ask()
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_NotFound):
        return None


def _gpu(nvml: Any, handle: Any, index: int) -> dict[str, Any]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    capability = _told(nvml, lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    return {
        "index": index,
        "name": nvml.nvmlDeviceGetName(handle),
        "uuid": nvml.nvmlDeviceGetUUID(handle),
        "pci_bus_id": nvml.nvmlDeviceGetPciInfo(handle).busId,
        "compute_capability": ".".join(map(str, capability)) if capability else None,
        "memory_total_bytes": memory.total,
        "memory_used_bytes": memory.used,
        "memory_free_bytes": memory.free,
        "utilization_percent": _told(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
    }


def _of(nvml: Any, handle: Any, index: int) -> list[dict[str, Any]]:
    loads = _told(nvml, lambda: nvml.nvmlDeviceGetProcessUtilization(handle, 0)) or []
    percent = {load.pid: load.smUtil for load in loads}

    def name(pid: int) -> Any:
        return _told(nvml, lambda: nvml.nvmlSystemGetProcessName(pid))

    return [
        {
            "gpu": index,
            "pid": process.pid,
            "name": name(process.pid),
            "memory_used_bytes": process.usedGpuMemory,
            "utilization_percent": percent.get(process.pid),
        }
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    ]


def _show(found: dict[str, Any]) -> None:
    def percent(value: int | None) -> str:
        return "-" if value is None else f"{value}%"

    print(f"driver {found['driver_version']}, CUDA {found['cuda_version']}\n")
    header = ("GPU", "NAME", "UUID", "BUS", "CAPABILITY", "MEMORY USED", "TOTAL", "UTILISATION")
    rows = [
        (
            gpu["index"],
            gpu["name"],
            gpu["uuid"],
            gpu["pci_bus_id"],
            gpu["compute_capability"] or "-",
            f"{gpu['memory_used_bytes'] // _MIB} MiB",
            f"{gpu['memory_total_bytes'] // _MIB} MiB",
            percent(gpu["utilization_percent"]),
        )
        for gpu in found["gpus"]
    ]
    table.show(header, rows)
    if not found["processes"]:
        print("\nno processes of this guest")
        return
    processes = [
        (
            one["gpu"],
            one["pid"],
            one["name"] or "?",
            f"{one['memory_used_bytes'] // _MIB} MiB",
            percent(one["utilization_percent"]),
        )
        for one in found["processes"]
    ]
    print()
    table.show(("GPU", "PID", "PROGRAM", "MEMORY USED", "UTILISATION"), processes)
