"""A guest under QEMU's emulation, and the programs that a test runs in it."""

from __future__ import annotations

import json
import queue
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.tree import ROOT
from tests.vm import initramfs
from tests.vm.kernel import Kernel, MissingError

PORT = "org.gpupool.test"
INSIDE = Path(__file__).parent / "inside.py"
# Of the kernel's command line: what init.sh starts in the guest.
BOOT_WORDS = f"console=ttyS0 quiet panic=-1 gpupool.python={sys.executable} gpupool.inside={INSIDE}"
# Under emulation, beside other work on two cores.
BOOT_TIMEOUT_S = 120
_SEND_TIMEOUT = struct.pack("ll", 20, 0)  # struct timeval


def qemu() -> str:
    """The emulator. Raises MissingError."""
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        raise MissingError("qemu-system-x86_64 is missing (Debian: qemu-system-x86)")
    return found


class Program:
    """A program in the guest. Lines are as it wrote them."""

    def __init__(self, machine: Machine, number: int) -> None:
        self._machine = machine
        self.number = number
        self.out = ""
        self.err = ""
        self.code: int | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._ended = threading.Event()

    def take(self, message: dict[str, Any]) -> None:
        """What the guest says of it; called by the machine's reader."""
        if "out" in message:
            self.out += message["out"]
            self._lines.put(message["out"])
        self.err += message.get("err", "")
        if "code" in message:
            self.code = message["code"]
            self._ended.set()

    def lost(self) -> None:
        """The guest is gone."""
        self._ended.set()

    def read_line(self, timeout_s: float = 60) -> str:
        """The next line of its output, without its end."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                return self._lines.get(timeout=0.1).rstrip("\n")
            except queue.Empty:
                if self._ended.is_set() and self._lines.empty():
                    break
        raise AssertionError(f"no line within {timeout_s} s; code {self.code}\n{self.err}")

    def write(self, text: str) -> None:
        """To its standard input."""
        self._machine.say(id=self.number, input=text)

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        self._machine.say(id=self.number, signal=number)

    def wait(self, timeout_s: float = 120) -> int:
        """Its exit code; negative for a signal."""
        if not self._ended.wait(timeout_s):
            raise AssertionError(f"still running after {timeout_s} s\n{self.out}\n{self.err}")
        assert self.code is not None, self._machine.explain("the guest ended before the program")
        return self.code


class Machine:
    """One guest. `folder` gets its sockets and its serial log; `vhost` is its vsock device,
    `window` the file that it shares with its host, as libvirt's <shmem> has it; `card` are QEMU's
    words for its network card.
    """

    def __init__(
        self,
        folder: Path,
        kernel: Kernel,
        *,
        vhost: Path | None = None,
        window: Path | None = None,
        card: Sequence[str] = (),
        memory_mib: int = 768,
        processors: int = 1,
    ) -> None:
        self.folder = folder
        self.kernel = kernel
        self.vhost = vhost
        self.window = window
        self.card = card
        self.memory_mib = memory_mib
        self.processors = processors
        self.process: subprocess.Popen[bytes] | None = None
        self.ready: queue.Queue[float] = queue.Queue()
        self._programs: dict[int, Program] = {}
        self._count = 0
        self._port: socket.socket | None = None
        self._qmp: socket.socket | None = None
        self._reader: threading.Thread | None = None

    @property
    def serial(self) -> str:
        """What kernel and init have said."""
        path = self.folder / "serial.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def explain(self, what: str) -> str:
        """A text for a failure: what, and the end of both logs."""
        errors = (self.folder / "qemu.log").read_text(errors="replace")
        return f"{what}\n--- QEMU\n{errors[-1500:]}\n--- serial\n{self.serial[-3000:]}"

    def command(self) -> list[str]:
        """QEMU's command line."""
        archive = self.folder / "initramfs"
        initramfs.build(self.kernel, archive)
        line = [
            qemu(),
            *("-accel", "tcg"),
            *("-machine", "q35,memory-backend=ram,usb=off,vmport=off"),
            *("-cpu", "max"),
            *("-m", f"{self.memory_mib}", "-smp", f"{self.processors}"),
            *("-object", f"memory-backend-memfd,id=ram,size={self.memory_mib}M,share=on"),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-kernel", str(self.kernel.image), "-initrd", str(archive)),
            *("-append", BOOT_WORDS),
            *("-serial", f"file:{self.folder}/serial.log"),
            *("-qmp", f"unix:{self.folder}/qmp,server=on,wait=off"),
            *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
            *("-device", "virtio-rng-pci"),
            *("-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=port,path={self.folder}/port,server=on,wait=off"),
            *("-device", f"virtserialport,chardev=port,name={PORT}"),
            *self.card,
        ]
        if self.vhost is not None:
            line += ["-chardev", f"socket,id=vsock,path={self.vhost}"]
            line += ["-device", "vhost-user-vsock-pci,chardev=vsock"]
        if self.window is not None:
            size = self.window.stat().st_size
            memory = f"memory-backend-file,id=window,mem-path={self.window},size={size},share=on"
            line += ["-object", memory, "-device", "ivshmem-plain,memdev=window"]
        return line

    def start(self) -> None:
        """Starts it; `wait_ready` waits for its programs."""
        with (self.folder / "qemu.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.connect()
        self._qmp = self._dial("qmp")
        self._qmp.settimeout(20)
        self.qmp("qmp_capabilities")

    def connect(self) -> None:
        """Reads what its programs say, from now on."""
        self._port = self._dial("port")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def disconnect(self) -> None:
        """After QEMU's end."""
        if self._reader is not None:
            self._reader.join(timeout=10)
        for connection in (self._port, self._qmp):
            if connection is not None:
                connection.close()

    def wait_ready(self, timeout_s: float = BOOT_TIMEOUT_S) -> float:
        """Waits until the guest takes commands; the guest's own seconds since its kernel began."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                return self.ready.get(timeout=0.1)
            except queue.Empty:
                if self.process is not None and self.process.poll() is not None:
                    break
        raise AssertionError(self.explain(f"the guest was not ready within {timeout_s} s"))

    def _dial(self, name: str) -> socket.socket:
        deadline = time.monotonic() + 30
        while True:
            connection = socket.socket(socket.AF_UNIX)
            # A guest that does not read must not stop the test for ever; the reader may wait.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
            try:
                connection.connect(str(self.folder / name))
            except OSError:
                connection.close()
                ended = self.process is None or self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise AssertionError(self.explain("QEMU did not start")) from None
                time.sleep(0.02)
            else:
                return connection

    def _read(self) -> None:
        assert self._port is not None
        for line in self._port.makefile("rb"):
            message = json.loads(line)
            if "ready" in message:
                self.ready.put(message["ready"])
            else:
                self._programs[message["id"]].take(message)
        for program in list(self._programs.values()):
            program.lost()

    def say(self, **message: object) -> None:
        """One line to tests/vm/inside.py."""
        assert self._port is not None
        self._port.sendall(json.dumps(message).encode() + b"\n")

    def begin(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Program:
        """Starts a program in the guest."""
        self._count += 1
        program = self._programs[self._count] = Program(self, self._count)
        self.say(id=program.number, command=list(command), environment=dict(environment or {}))
        return program

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 120,
    ) -> Program:
        """Runs a program in the guest to its end."""
        program = self.begin(command, environment)
        program.wait(timeout_s)
        return program

    def python(
        self, text: str, environment: Mapping[str, str] | None = None, timeout_s: float = 120
    ) -> str:
        """Runs Python text in the guest; its output. An exit code other than 0 fails the test."""
        shared = {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", text]
        done = self.run(command, dict(shared, **environment or {}), timeout_s)
        assert done.code == 0, f"exit code {done.code}\n{done.out}\n{done.err}"
        return done.out

    def qmp(self, command: str, **arguments: object) -> Any:
        """A command to QEMU itself (docs/interop/qmp-spec.txt); its answer."""
        assert self._qmp is not None
        order = {"execute": command, "arguments": arguments}
        self._qmp.sendall(json.dumps(order).encode() + b"\n")
        buffer = b""
        while True:
            data = self._qmp.recv(65536)
            assert data, self.explain(f"QEMU ended at {command}")
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                assert "error" not in answer, answer
                if "return" in answer:
                    return answer["return"]

    def kill(self) -> None:
        """Ends QEMU as a host's out-of-memory killer would."""
        if self.process is None:
            return
        self.process.kill()
        try:
            self.process.wait(timeout=30)
        finally:
            self.disconnect()
