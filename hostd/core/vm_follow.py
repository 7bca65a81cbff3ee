"""Domains that run, as libvirt tells of them: their metadata is changed, or they went unnoticed.

What a domain asks for takes effect here as far as its right goes; a refusal is logged, and what it
has stays. The hook (qemu_hooks/qemu) does starts and ends; this is for what happens between them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.vm import Vm, VmError, VmOrder, VmState, VmVgpu
from gpupool.hostd.core.vms import Vms
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")


@dataclass(frozen=True, slots=True)
class SeenDomain:
    """A domain that runs."""

    uuid: str
    name: str
    wanted: tuple[VmVgpu, ...] = ()  # empty: it asks for nothing
    window_mib: int = 0
    cid: int = 0  # of its kernel's vsock device; 0: it has none
    problem: str = ""  # what is wrong with its metadata


class VmFollower:
    """Keeps the VMs of one host as libvirt has them. Used from the event loop only."""

    def __init__(self, vms: Vms) -> None:
        """Once the VMs of an earlier hostd are found again."""
        self._vms = vms
        # Only these can have ended unnoticed: of all others the hook tells.
        every = (facts.vm for facts in vms.all())
        self._found = {vm.uuid: vm for vm in every if not vm.kata}

    def running(self, domains: Sequence[SeenDomain]) -> None:
        """All that run, whenever libvirt is reached anew."""
        run = {one.uuid for one in domains}
        found, self._found = self._found, {}
        for uuid, before in found.items():
            now = self._find(uuid)
            # A later `since`: it was started anew after libvirt was asked.
            if uuid not in run and now is not None and now.since == before.since:
                self._try(uuid, "ended while hostd was away", partial(self._vms.release, uuid))
        for one in domains:
            self.changed(one)

    def changed(self, one: SeenDomain) -> None:
        """Its metadata is this now."""
        vm = self._find(one.uuid)
        if one.problem:
            facts = {"uuid": one.uuid, "name": one.name, "error": one.problem}
            log.warning("metadata of a virtual machine is wrong", extra=fields(facts))
        elif vm is None:
            if one.wanted:
                self._begin(one)
        elif vm.state is VmState.STARTED and vm.wanted != one.wanted:
            if one.wanted:
                self._try(one.uuid, "changed", lambda: self._vms.change(one.uuid, one.wanted))
            else:
                self._try(one.uuid, "lost its vGPUs", lambda: self._vms.release(one.uuid))

    def _begin(self, one: SeenDomain) -> None:
        if not one.cid or self._vms.relay:
            facts = {"uuid": one.uuid, "name": one.name}
            log.warning("virtual machine gets its vGPU with its next start", extra=fields(facts))
            return
        order = VmOrder(one.uuid, one.name, one.wanted, one.window_mib, one.cid)

        def begin() -> None:
            self._vms.prepare(order)
            self._vms.started(one.uuid, one.cid)

        self._try(one.uuid, "got its vGPUs while it runs", begin)

    def _find(self, uuid: str) -> Vm | None:
        return next((facts.vm for facts in self._vms.all() if facts.vm.uuid == uuid), None)

    @staticmethod
    def _try(uuid: str, what: str, action: Callable[[], object]) -> None:
        facts = {"uuid": uuid, "what": what}
        try:
            action()
        except (VmError, PortError) as error:
            log.warning("libvirt was not followed", extra=fields({**facts, "error": str(error)}))
        else:
            log.info("virtual machine", extra=fields(facts))
