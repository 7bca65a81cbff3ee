"""`gpupool vm attach`, `virsh start`, and a program in the guest computes."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Host, end_host, make_host
from tests.fakes.libvirtd import Libvirtd, missing
from tests.fakes.vm_command import Command
from tests.tree import ROOT
from tests.vm import initramfs
from tests.vm.house import Domain, House
from tests.vm.kernel import Kernel
from tests.vm.machine import BOOT_WORDS, PORT, Machine
from tests.vm.test_guest import COUNT, FIRST_RESULT_S

# The guest of tests/vm/machine.py in libvirt's words, without a vsock device.
GUEST = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>768</memory>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{folder}/initramfs</initrd>
    <cmdline>{words}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_reboot>destroy</on_reboot>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <filesystem type='mount' accessmode='passthrough' multidevs='remap'>
      <source dir='/'/>
      <target dir='root'/>
      <readonly/>
    </filesystem>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <serial type='file'><source path='{folder}/serial.log'/></serial>
    <channel type='unix'>
      <source mode='bind' path='{folder}/port'/>
      <target type='virtio' name='{port}'/>
    </channel>
  </devices>
</domain>
"""


@pytest.fixture
def libvirtd() -> Iterator[Libvirtd]:
    """One of its own, as its hook asks the hostd below it."""
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    one = Libvirtd((ROOT / "qemu_hooks" / "qemu").read_text(encoding="utf-8"))
    yield one
    one.close()


@pytest.fixture
def host(libvirtd: Libvirtd) -> Iterator[Host]:
    """A hostd with the software GPU, where the hook looks for it."""
    one = make_host(libvirtd.folder / "gpupool", more='[vm]\nrelay = "yes"\n')
    yield one
    libvirtd.clear()
    end_host(one)


def define(libvirtd: Libvirtd, machine: Machine, name: str) -> str:
    """The domain's UUID."""
    initramfs.build(machine.kernel, machine.folder / "initramfs")
    (machine.folder / "qemu.log").touch()
    one = str(uuid.uuid4())
    path = machine.folder / "domain.xml"
    path.write_text(
        GUEST.format(
            name=name,
            uuid=one,
            kernel=machine.kernel.image,
            folder=machine.folder,
            words=BOOT_WORDS,
            port=PORT,
        )
    )
    libvirtd.does("define", str(path))
    return one


def test_a_domain_that_virsh_starts_computes(
    libvirtd: Libvirtd, host: Host, guest_kernel: Kernel
) -> None:
    house = House(host, guest_kernel)
    folder = host.folder / "guest"
    folder.mkdir()
    machine = Machine(folder, guest_kernel)
    domain = Domain(define(libvirtd, machine, "web"), "web", 0, host.folder)
    vm = Command(libvirtd, host.folder / "admin.sock")
    vm.says("attach", "web", "--compute", "30", "--memory", "256", "--window", "64")
    began, load = time.monotonic(), os.getloadavg()[0]
    try:
        libvirtd.does("start", "web")
        machine.connect()
        machine.wait_ready()
        said = house.install(machine)
        assert "web: 30 % compute (elastic), 256 MiB" in said
        assert machine.python(COUNT).split() == ["3", "True"]
        took_s = time.monotonic() - began
        # Whoever else computes here takes his part of the processors.
        share = max(1.0, max(load, os.getloadavg()[0]) / (os.cpu_count() or 1))
        print(f"first result after {took_s:.1f} s, {share:.1f} programs a processor")
        assert took_s < FIRST_RESULT_S * share
        assert house.shown(domain)["health"]["state"] == "ready"
        assert "transport=vsock" in host.log
        libvirtd.does("destroy", "web")
    finally:
        libvirtd.clear()
        machine.disconnect()
    assert house.call("vm_list")["vms"] == []
    assert not Path(host.folder, "vms", domain.uuid).exists()
