"""PciDevices port: sysfs, procfs and the device files.

Facts: driver_override, bind and unbind are Documentation/ABI/testing/sysfs-bus-pci; that a virtual
machine gets an IOMMU group as a whole, and that bridges in it do not count, is
Documentation/driver-api/vfio.rst; /proc/driver/nvidia/gpus is the README of NVIDIA's driver,
chapter "The /proc interface".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from gpupool.hostd.adapters import sysfs_write
from gpupool.hostd.core.pool import PciFunction
from gpupool.hostd.core.pool_ports import Holder
from gpupool.hostd.core.ports import PortError

_VFIO = "vfio-pci"
_BRIDGE = "0x06"  # first digits of a PCI class
_NO_OBSTACLE = ("", _VFIO, "pci-stub")  # drivers of other devices of a group (vfio.rst)
_COMM_LENGTH = 15
_SHARED_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")


class SysfsPci:
    """Implements `pool_ports.PciDevices`."""

    def __init__(
        self, root: Path = Path("/"), write: Callable[[Path, str], None] = sysfs_write.write
    ) -> None:
        self._root = root
        self._write = write
        self._drivers = root / "sys/bus/pci/drivers"

    def functions(self, address: str) -> tuple[PciFunction, ...]:
        """The card's functions. Raises PortError where the group holds another device's."""
        card = address.rpartition(".")[0]
        found, others = [], []
        for one in self._group(address):
            driver = self._driver(one)
            if one.rpartition(".")[0] == card:
                found.append(PciFunction(one, driver, self._override(one)))
            elif not self._class(one).startswith(_BRIDGE) and driver not in _NO_OBSTACLE:
                others.append(f"{one} (class {self._class(one)}, driver {driver})")
        if others:
            raise PortError(
                f"the IOMMU group of {address} also holds {', '.join(others)}, which a virtual "
                "machine would get with it; put the card into another slot, or enable PCIe ACS"
            )
        return tuple(found)

    def holders(self, address: str) -> tuple[Holder, ...]:
        """Who has one of the card's own device files open."""
        nodes = {str(path): path for path in self._own_nodes(address)}
        wanted = {key: name for name, path in nodes.items() if (key := _key(path)) is not None}
        if not wanted:
            return ()
        found: dict[tuple[int, str], Holder] = {}
        for pid, target in self._open_device_files():
            name = wanted.get(_key(target) or (-1, -1, -1))
            if name is not None:
                node = "/" + str(Path(name).relative_to(self._root))
                found[pid, node] = Holder(pid, self._name(pid), node)
        return tuple(found[key] for key in sorted(found))

    def obstacle(self, address: str) -> str:
        """What else keeps the card from vfio-pci."""
        if not (self._drivers / _VFIO).is_dir():
            return f"the kernel has no driver {_VFIO}: `modprobe vfio-pci`, then ask again"
        modeset = self._root / "sys/module/nvidia_drm/parameters/modeset"
        shown = (self._device(address) / "drm").is_dir() and _read(modeset) == "Y"
        if shown and not self._modeset_lets_go():
            return (
                f"the module nvidia_drm holds {address} (modeset=Y): write `options nvidia_drm "
                "modeset=0` to a file in /etc/modprobe.d and load it again, then ask again"
            )
        return ""

    def _modeset_lets_go(self) -> bool:
        """Whether this driver makes nvidia_drm close a card before it waits for everybody else to:
        nv_pci_remove calls nvidia_modeset_remove first, in those that have it (nv-pci.c of NVIDIA's
        open kernel modules).
        """
        try:
            with (self._root / "proc/kallsyms").open(encoding="ascii") as lines:
                return any(line.split()[2] == "nvidia_modeset_remove" for line in lines)
        except OSError:
            return False

    def claim(self, function: PciFunction) -> None:
        """Binds it to vfio-pci."""
        address = function.address
        device = self._device(address)
        driver = self._driver(address)
        if driver == _VFIO:
            return
        self._write(device / "driver_override", _VFIO)
        if driver:
            self._write(device / "driver" / "unbind", address)
        self._bind(address, _VFIO)

    def restore(self, function: PciFunction) -> None:
        """Binds it to what it had."""
        address, wanted = function.address, function.driver
        device = self._device(address)
        if self._override(address) != function.override:
            self._write(device / "driver_override", function.override or "\n")
        driver = self._driver(address)
        if driver == wanted:
            return
        if driver:
            self._write(device / "driver" / "unbind", address)
        if wanted:
            self._bind(address, wanted)

    def nodes(self, address: str) -> tuple[str, ...]:
        """The device files for a program that is to use it."""
        own = [path for path in self._own_nodes(address) if path.exists()]
        if self._driver(address) == _VFIO:
            shared = [self._root / "dev/vfio/vfio"]
        else:
            shared = [self._root / "dev" / name for name in _SHARED_NODES]
        if not own:
            raise PortError(
                f"{address} has no device file: `nvidia-modprobe -c 0 -u` makes those of NVIDIA's "
                "driver"
            )
        paths = [*own, *(path for path in shared if path.exists())]
        return tuple("/" + str(path.relative_to(self._root)) for path in paths)

    def _bind(self, address: str, driver: str) -> None:
        folder = self._drivers / driver
        if not folder.is_dir():
            raise PortError(f"{address} cannot be bound: driver {driver} is not loaded")
        self._write(folder / "bind", address)
        now = self._driver(address)
        if now != driver:
            raise PortError(f"{address} was bound to {driver}, but has driver {now or 'none'}")

    def _device(self, address: str) -> Path:
        device = self._root / "sys/bus/pci/devices" / address
        if not device.is_dir():
            raise PortError(f"there is no PCI device {address}; see `lspci -D`")
        return device

    def _group(self, address: str) -> list[str]:
        group = self._device(address) / "iommu_group"
        if not group.exists():
            raise PortError(
                f"{address} is in no IOMMU group: enable VT-d or AMD-Vi in the firmware, and the "
                "IOMMU in the kernel (intel_iommu=on)"
            )
        return sorted(one.name for one in (group / "devices").iterdir())

    def _driver(self, address: str) -> str:
        link = self._device(address) / "driver"
        return link.resolve().name if link.exists() else ""

    def _override(self, address: str) -> str:
        text = _read(self._device(address) / "driver_override")
        return "" if text == "(null)" else text

    def _class(self, address: str) -> str:
        return _read(self._device(address) / "class")

    def _own_nodes(self, address: str) -> Iterator[Path]:
        """Device files that are this card's alone: of the driver that it is bound to."""
        device = self._device(address)
        if self._driver(address) == _VFIO:
            yield self._root / "dev/vfio" / (device / "iommu_group").resolve().name
            return
        facts = _read(self._root / "proc/driver/nvidia/gpus" / address / "information")
        minor = re.search(r"^Device Minor:\s*(\d+)", facts, re.M)
        if minor:
            yield self._root / f"dev/nvidia{minor[1]}"
        drm = device / "drm"
        for one in sorted(drm.iterdir()) if drm.is_dir() else ():
            yield self._root / "dev/dri" / one.name

    def _open_device_files(self) -> Iterator[tuple[int, Path]]:
        """Every descriptor below /dev of every process. Raises PortError where they are hidden."""
        below = f"{self._root / 'dev'}/"
        for process in (self._root / "proc").iterdir():
            if not process.name.isdigit():
                continue
            try:
                links = list((process / "fd").iterdir())
            except PermissionError:
                raise PortError(
                    f"who holds the card is not to be seen: {process}/fd may not be read; run "
                    "hostd as root"
                ) from None
            except OSError:  # it has ended
                continue
            for link in links:
                try:
                    target = str(link.readlink())
                except OSError:
                    continue
                # Only these: looking at a file of a network that is gone would not return.
                if target.startswith(below):
                    yield int(process.name), link

    def _name(self, pid: int) -> str:
        """The program's, of which the kernel keeps 15 characters; the rest is in the command line
        (proc(5)), where the process may have changed it.
        """
        folder = self._root / "proc" / str(pid)
        name = _read(folder / "comm") or "?"
        longer = _read(folder / "cmdline").partition("\0")[0].rpartition("/")[2]
        return longer if len(name) == _COMM_LENGTH and longer.startswith(name) else name


def _key(path: Path) -> tuple[int, int, int] | None:
    """What a device file is, wherever a container has it; None: there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return (0, 0, facts.st_rdev) if facts.st_rdev else (facts.st_dev, facts.st_ino, 0)


def _read(path: Path) -> str:
    """The file's text without white space around it; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
