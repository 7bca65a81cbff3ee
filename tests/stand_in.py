"""A virtual machine of a Host without one: its programs run here, with a vsock device that brings
them to the VM's sockets (bench/native/vsock.cpp), and with its window, handed out as in a guest.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from gpupool.cli import admin
from gpupool.guest.agent.log import Log
from gpupool.guest.agent.window import Window

PREPARED_MIB = 4096  # hostd allows no more unless told; only touched memory is used


class StandIn:
    """One VM, prepared as libvirt's hook would, its agent at work."""

    def __init__(
        self,
        folder: Path,
        native: Path,
        name: str = "stand-in",
        window_mib: int = PREPARED_MIB,
        compute_percent: int = 0,
        memory_mib: int = 0,
    ) -> None:
        """`folder`: the Host's."""
        self._admin = folder / "admin.sock"
        self._device = native / "lib" / "bench" / "libgpupool-bench-vsock.so"
        if not self._device.exists():
            pytest.skip(f"{self._device} is missing: ninja bench")
        self.uuid = str(uuid.uuid4())
        vgpu = {"compute_percent": compute_percent, "memory_mib": memory_mib}
        self.call("vm_allow", name=name, **vgpu)
        made = self.call("vm_prepare", name=name, window_mib=window_mib, vgpus=[vgpu])
        self.window = Path(made["window"])
        self.ports = folder / self.uuid
        self.ports.mkdir()
        (self.ports / "port-9177").symlink_to(Path(made["folder"]) / "vsock_9177")
        self.socket = self.ports / "window.sock"
        self.agent = Window(Log(), self.socket, self.window)
        self.agent.follow(window_mib << 20)

    def call(self, method: str, **more: Any) -> dict[str, Any]:
        """Asks hostd about it."""
        return admin.call(self._admin, method, uuid=self.uuid, **more)

    def variables(self, transport: str = "") -> dict[str, str]:
        """Of a program in it."""
        return {
            "LD_PRELOAD": str(self._device),
            "VSOCK_FOLDER": str(self.ports),
            "GPUPOOL_ENDPOINT": "vsock://2:9177",
            "GPUPOOL_WINDOW_SOCKET": str(self.socket),
            "GPUPOOL_TRANSPORT": transport,
        }

    def end(self) -> None:
        """Its release; its files are gone."""
        self.agent.end()
        self.call("vm_release")
