"""The window: memory of the host that this machine sees as a PCI device, handed out to programs.

The device is ivshmem (qemu: docs/specs/ivshmem-spec.rst), its memory BAR 2. Opening it takes root,
mapping it does not: whoever connects to our socket gets the open descriptor and needs no rights of
its own. A program that has it can map all of it, also what other programs of this machine have
there (docs/vms.md).
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import threading
from pathlib import Path

from gpupool.guest.agent.log import Log

SOCKET = Path("/run/gpupool-guest/window.sock")
_DEVICES = Path("/sys/bus/pci/devices")
_VENDOR, _DEVICE = "0x1af4", "0x1110"
# Write-combining: with the other one each store waits for the bus (docs/data-plane.md).
_MEMORY = "resource2_wc"
_OFFER = struct.Struct("<IIQ")  # WindowOffer of wire/cpp/hello.hpp
_OFFER_MAGIC = 0x574F4457
_SEND_TIMEOUT_S = 5.0
_MIB = 1 << 20


class NoWindowError(Exception):
    """There is none to hand out; the text says why."""


def find(size_bytes: int, devices: Path = _DEVICES) -> Path:
    """The memory of the ivshmem device of that size. Raises NoWindowError."""
    memories = []
    with contextlib.suppress(OSError):
        memories = [
            path / _MEMORY
            for path in sorted(devices.iterdir())
            if _read(path / "vendor") == _VENDOR and _read(path / "device") == _DEVICE
        ]
    found = [path for path in memories if path.exists() and path.stat().st_size == size_bytes]
    if len(found) == 1:
        return found[0]
    wanted = f"window of {size_bytes // _MIB} MiB"
    if found:
        names = ", ".join(path.parent.name for path in found)
        raise NoWindowError(f"the devices {names} all look like the {wanted}")
    if not memories:
        raise NoWindowError(
            f"this machine has no ivshmem device, and the host says that it has a {wanted}; it "
            "comes with the domain's next start"
        )
    raise NoWindowError(f"no ivshmem device of this machine has the size of the {wanted}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


class Window:
    """Hands out the window, if there is one."""

    def __init__(self, log: Log, path: Path = SOCKET, memory: Path | None = None) -> None:
        """`path`: of the socket. `memory`: the window itself, where it is not to be looked for."""
        self._log = log
        self._path = path
        self._memory = memory
        self._fd = -1
        self._size_bytes = 0
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()  # over the descriptor and its size
        self.problem = ""  # why there is none although the host says so

    def follow(self, size_bytes: int) -> str:
        """Hands out the window that the host says there is, 0 for none; the socket's path, or
        nothing.
        """
        before = self.problem
        try:
            if size_bytes != self._size_bytes:
                self._open(size_bytes)
            self.problem = ""
        except (NoWindowError, OSError) as error:
            self._close()
            self.problem = f"no window, all data goes through vsock: {error}"
            if self.problem != before:
                self._log.error(self.problem)
        return str(self._path) if self._size_bytes else ""

    def end(self) -> None:
        """Hands out nothing any more. Programs that have the window keep it."""
        self._close()
        if self._listener is not None:
            self._listener.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _open(self, size_bytes: int) -> None:
        self._close()
        if not size_bytes:
            return
        memory = self._memory or find(size_bytes)
        _enable(memory.parent)
        fd = os.open(memory, os.O_RDWR | os.O_CLOEXEC)
        if os.fstat(fd).st_size != size_bytes:
            os.close(fd)
            raise NoWindowError(f"{memory} is not of {size_bytes} bytes, as the host says")
        if self._listener is None:
            self._listen()
        with self._lock:
            self._fd, self._size_bytes = fd, size_bytes
        self._log.info(f"window of {size_bytes // _MIB} MiB ({memory}) at {self._path}")

    def _close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd, self._size_bytes = -1, 0

    def _listen(self) -> None:
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(fresh))
            fresh.chmod(0o666)  # every program of this machine may have a vGPU
            listener.listen(64)
            fresh.replace(self._path)  # one of an agent that is gone
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                if listener.fileno() < 0:
                    return
                continue  # whoever came has gone
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_SEND_TIMEOUT_S)
                self._offer(connection)

    def _offer(self, connection: socket.socket) -> None:
        with self._lock:
            if self._fd < 0:
                return
            rights = array.array("i", [self._fd])
            offer = _OFFER.pack(_OFFER_MAGIC, 0, self._size_bytes)
            connection.sendmsg([offer], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def is_handed_out(path: Path) -> bool:
    """Whether an agent hands one out there."""
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.settimeout(_SEND_TIMEOUT_S)
        connection.connect(str(path))
        data, rights, _, _ = connection.recvmsg(_OFFER.size, socket.CMSG_SPACE(4))
        for _, _, raw in rights:
            os.close(array.array("i", raw)[0])
        return len(data) == _OFFER.size
    return False


def _enable(device: Path) -> None:
    """A device that was plugged in while the machine ran may not decode its addresses yet (kernel:
    Documentation/PCI/sysfs-pci.rst).
    """
    switch = device / "enable"
    if _read(switch) == "0":
        switch.write_text("1", encoding="ascii")
