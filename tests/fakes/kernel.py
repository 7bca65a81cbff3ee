"""The parts of sysfs, procfs and /dev that a card has, in a folder, and what writing to them does.

Follows drivers/base/bus.c and drivers/pci/pci-driver.c of Linux 6: unbinding from a driver that a
device does not have is ENODEV, binding what is bound is EBUSY, a driver_override lets only the
driver of that name bind, and vfio-pci binds nothing else. vfio.rst: a group's file is there while
one of its devices is bound to vfio-pci. NVIDIA's driver: /proc/driver/nvidia/gpus has the cards
that are bound, /dev/nvidiaN stays; unbinding an open card does not return.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from gpupool.hostd.core.ports import PortError

VFIO = "vfio-pci"
# Which class of device a driver takes by itself.
_TAKES = {"nvidia": "0x03", "snd_hda_intel": "0x0403", "mlx5_core": "0x02", "pcieport": "0x0604"}


class FakeKernel:
    """A root folder. `write` stands in for write(2) on a file of sysfs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.writes: list[str] = []
        self._devices = root / "sys/bus/pci/devices"
        self._drivers = root / "sys/bus/pci/drivers"
        for folder in ("dev/vfio", "proc/driver/nvidia/gpus"):
            (root / folder).mkdir(parents=True)
        for name in ("nvidiactl", "nvidia-uvm", "vfio/vfio"):
            (root / "dev" / name).touch()
        for driver in (*_TAKES, VFIO):
            self.load_driver(driver)

    def load_driver(self, name: str) -> None:
        """modprobe."""
        (self._drivers / name).mkdir(parents=True)
        for file in ("bind", "unbind"):
            (self._drivers / name / file).touch()

    def unload_driver(self, name: str) -> None:
        """A driver that has no device."""
        for file in (self._drivers / name).iterdir():
            file.unlink()
        (self._drivers / name).rmdir()

    def add_device(self, address: str, kind: str, driver: str, group: int | None) -> None:
        """`kind`: its PCI class."""
        device = self.root / "sys/devices/pci0000:00" / address
        device.mkdir(parents=True)
        (device / "class").write_text(f"{kind}\n")
        (device / "driver_override").write_text("(null)\n")
        self._devices.mkdir(parents=True, exist_ok=True)
        (self._devices / address).symlink_to(device)
        if group is not None:
            folder = self.root / "sys/kernel/iommu_groups" / str(group)
            (folder / "devices").mkdir(parents=True, exist_ok=True)
            (folder / "devices" / address).symlink_to(device)
            (device / "iommu_group").symlink_to(folder)
        if driver:
            self._attach(address, driver)

    def add_card(self, address: str, group: int | None = None) -> None:
        """A GPU and its audio function, in a group with the bridge above it."""
        minor = len(list(self._devices.glob("*.0"))) // 2 if self._devices.is_dir() else 0
        number = 10 + minor if group is None else group
        self._minors = {**getattr(self, "_minors", {}), address: minor}
        (self.root / f"dev/nvidia{minor}").touch()
        bridge = f"0000:00:{minor + 1:02x}.0"
        self.add_device(bridge, "0x060400", "pcieport", number)
        self.add_device(address, "0x030200", "nvidia", number)
        self.add_device(address[:-1] + "1", "0x040300", "snd_hda_intel", number)

    def driver(self, address: str) -> str:
        """What it is bound to; empty: nothing."""
        link = self._devices / address / "driver"
        return link.resolve().name if link.is_symlink() else ""

    def override(self, address: str) -> str:
        """Its driver_override; empty: none."""
        text = (self._devices / address / "driver_override").read_text().strip()
        return "" if text == "(null)" else text

    def open(self, pid: int, name: str, node: str) -> None:
        """A process has a device file open."""
        folder = self.root / "proc" / str(pid) / "fd"
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "comm").write_text(f"{name[:15]}\n")  # TASK_COMM_LEN
        (folder.parent / "cmdline").write_text(f"/usr/bin/{name}\0--option\0")
        (folder / str(3 + len(list(folder.iterdir())))).symlink_to(self.root / node.lstrip("/"))

    def end(self, pid: int) -> None:
        """It has ended."""
        folder = self.root / "proc" / str(pid)
        for path in (*(folder / "fd").iterdir(), folder / "comm", folder / "cmdline"):
            path.unlink()
        (folder / "fd").rmdir()
        folder.rmdir()

    def write(self, path: Path, text: str) -> None:
        """As sysfs_write.write does it. Raises PortError."""
        self.writes.append(f"{path.parent.name}/{path.name} {text.strip()}")
        try:
            if path.name == "driver_override":
                path.write_text((text.strip() or "(null)") + "\n")
            elif path.name == "unbind":
                self._unbind(path.resolve().parent.name, text)
            else:
                self._bind(path.resolve().parent.name, text)
        except OSError as error:
            code = error.errno or errno.EIO
            raise PortError(f"cannot write {text!r} to {path}: {os.strerror(code)}") from error

    def _unbind(self, driver: str, address: str) -> None:
        if self.driver(address) != driver:
            raise OSError(errno.ENODEV, "no such device")
        if driver in ("nvidia", VFIO) and self._held(address):
            raise PortError(f"writing {address!r} to unbind has not returned for 30 s")
        (self._devices / address / "driver").unlink()
        (self._drivers / driver / address).unlink()
        if driver == "nvidia":
            folder = self.root / "proc/driver/nvidia/gpus" / address
            (folder / "information").unlink()
            folder.rmdir()
        if driver == VFIO and not any(self.driver(one) == VFIO for one in self._group(address)):
            self._group_file(address).unlink()

    def _bind(self, driver: str, address: str) -> None:
        if not (self._devices / address).exists():
            raise OSError(errno.ENODEV, "no such device")
        if self.driver(address):
            raise OSError(errno.EBUSY, "busy")
        override = self.override(address)
        kind = (self._devices / address / "class").read_text()
        if override:
            fits = override == driver
        else:
            fits = driver in _TAKES and kind.startswith(_TAKES[driver])
        if not fits:
            raise OSError(errno.ENODEV, "no such device")
        self._attach(address, driver)

    def _attach(self, address: str, driver: str) -> None:
        (self._devices / address / "driver").symlink_to(self._drivers / driver)
        (self._drivers / driver / address).symlink_to((self._devices / address).resolve())
        if driver == "nvidia":
            folder = self.root / "proc/driver/nvidia/gpus" / address
            folder.mkdir()
            text = f"Model: \t\t NVIDIA H100 PCIe\nIRQ:   \t\t 88\nBus Location: \t {address}\n"
            minor = self._minors[address]
            (folder / "information").write_text(f"{text}Device Minor: \t {minor}\n")
        if driver == VFIO:
            self._group_file(address).touch()

    def _group(self, address: str) -> list[str]:
        return [one.name for one in (self._devices / address / "iommu_group/devices").iterdir()]

    def _group_file(self, address: str) -> Path:
        number = (self._devices / address / "iommu_group").resolve().name
        return self.root / "dev/vfio" / number

    def _held(self, address: str) -> bool:
        file = self._group_file(address)
        if self.driver(address) == "nvidia":
            file = self.root / f"dev/nvidia{self._minors[address]}"
        links = (self.root / "proc").glob("[0-9]*/fd/*")
        return any(link.readlink() == file for link in links)
