"""A host with guests: a hostd that gives each a vGPU, and what they need to use it."""

from __future__ import annotations

import contextlib
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpupool.cli import admin
from gpupool.guest import package
from tests.conftest import TEST_GPU, Host, end_host, make_host
from tests.vm.kernel import Kernel
from tests.vm.machine import Machine

AGENT = "/opt/gpupool-guest/agent"


@dataclass
class Domain:
    """A virtual machine that hostd knows."""

    uuid: str
    name: str
    cid: int
    folder: Path
    window: Path | None = None


class House:
    """One hostd, and every guest that a test starts."""

    def __init__(self, host: Host, kernel: Kernel) -> None:
        self.host = host
        self.kernel = kernel
        self.domains: list[Domain] = []
        self.machines: list[Machine] = []
        self.archive = host.folder / "gpupool-guest.tar.gz"
        package.make(self.archive, host.native / "lib" / "guest")

    def call(self, method: str, **more: Any) -> dict[str, Any]:
        """Asks the admin socket."""
        return admin.call(self.host.folder / "admin.sock", method, **more)

    def prepare(
        self, name: str, *, compute_percent: int = 30, memory_mib: int = 256, window_mib: int = 0
    ) -> Domain:
        """What libvirt's hook does before a domain starts."""
        domain = str(uuid.uuid4())
        quota = {"compute_percent": compute_percent, "memory_mib": memory_mib}
        self.call("vm_allow", uuid=domain, name=name, **quota)
        order = {"name": name, "vgpus": [quota], "window_mib": window_mib}
        made = self.call("vm_prepare", uuid=domain, **order)
        window = Path(made["window"]) if window_mib else None
        self.domains.append(Domain(domain, name, made["cid"], Path(made["folder"]), window))
        return self.domains[-1]

    def boot(self, domain: Domain, *, memory_mib: int = 768, processors: int = 1) -> Machine:
        """Starts its guest; `install` makes it ready for programs."""
        folder = self.host.folder / f"qemu-{len(self.machines)}"
        folder.mkdir()
        vhost = domain.folder / "vhost"
        machine = Machine(
            folder,
            self.kernel,
            vhost=vhost,
            window=domain.window,
            memory_mib=memory_mib,
            processors=processors,
        )
        self.machines.append(machine)
        machine.start()
        self.call("vm_started", uuid=domain.uuid, cid=domain.cid)
        return machine

    def install(self, machine: Machine) -> str:
        """Unpacks the guest package and runs the agent (docs/vms.md); what the agent says."""
        unpacked = machine.run(["tar", "-C", "/", "-xzf", str(self.archive)])
        assert unpacked.code == 0, unpacked.err
        done = machine.run([AGENT, "--once"])
        assert done.code == 0, machine.explain(f"{done.code} {done.out}{done.err}\n{self.host.log}")
        return done.err

    def shown(self, domain: Domain) -> dict[str, Any]:
        """hostd's record of a VM; empty when it has none."""
        found: dict[str, Any] | None = self.call("vm_show", uuid=domain.uuid)["vm"]
        return found or {}

    def sessions(self, domain: Domain) -> list[int]:
        """Its sessions."""
        found: list[int] = self.shown(domain).get("sessions", [])
        return found

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float = 60) -> None:
        """Polls with a bound."""
        self.host.wait_until(condition, what, timeout_s)

    def end(self) -> None:
        """Everything, whatever a test has left."""
        with contextlib.ExitStack() as all_of_it:  # each of them, whatever becomes of the others
            for domain in self.domains:
                all_of_it.callback(self._release, domain)
            for machine in self.machines:
                all_of_it.callback(machine.kill)

    def _release(self, domain: Domain) -> None:
        with contextlib.suppress(admin.AdminError):
            self.call("vm_release", uuid=domain.uuid)


@contextlib.contextmanager
def open_house(kernel: Kernel, gpu: str = TEST_GPU) -> Iterator[House]:
    """For as long as the block."""
    with tempfile.TemporaryDirectory(prefix="gpupool-vm-") as name:
        host = make_host(Path(name), gpu, more='[vm]\nrelay = "yes"\n')
        house = None
        try:
            house = House(host, kernel)
            yield house
        finally:
            try:
                if house is not None:
                    house.end()
            finally:
                end_host(host)


def seconds_since(start: float) -> float:
    """On the clock of time.monotonic()."""
    return time.monotonic() - start
