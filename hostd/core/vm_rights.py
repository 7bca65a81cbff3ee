"""This host's own map of domains: who may have how much, from the configuration and by hand."""

from __future__ import annotations

from collections.abc import Iterable

from gpupool.hostd.core.vm import VmError, VmRight
from gpupool.hostd.core.vm_ports import VmStore


class VmRights:
    """Those of one host. A VM that runs keeps what it has, whatever changes here."""

    def __init__(self, store: VmStore, configured: Iterable[VmRight]) -> None:
        self._store = store
        self._configured = {right.uuid: right for right in configured}
        self._rights: dict[str, VmRight] = {}

    def load(self) -> None:
        """After a start. The configuration counts before what was allowed by hand."""
        self._rights = {right.uuid: right for right in self._store.load_rights()}
        self._rights |= self._configured

    def all(self) -> tuple[VmRight, ...]:
        """By UUID."""
        return tuple(self._rights[uuid] for uuid in sorted(self._rights))

    def find(self, uuid: str, name: str) -> VmRight:
        """The right of a domain of that name. Raises VmError."""
        right = self._rights.get(uuid)
        if right is None:
            raise VmError(
                f"domain {name or uuid} asks for a vGPU, and nobody on this host has allowed it "
                f"one: gpupool vm allow {uuid}"
            )
        return right

    def allow(self, right: VmRight) -> VmRight:
        """Makes or replaces one. Raises VmError and PortError."""
        problem = right.check()
        if problem:
            raise VmError(problem)
        self._check_not_configured(right.uuid)
        other = next((one for one in self.all() if one.cid == right.cid != 0), None)
        if other is not None and other.uuid != right.uuid:
            raise VmError(f"cid {right.cid} is domain {other.uuid}'s; choose another")
        self._store.save_right(right)
        self._rights[right.uuid] = right
        return right

    def disallow(self, uuid: str) -> None:
        """Forgets one. Raises VmError and PortError."""
        if uuid not in self._rights:
            raise VmError(f"domain {uuid} is not allowed anything; `gpupool vm list` shows all")
        self._check_not_configured(uuid)
        self._store.remove_right(uuid)
        del self._rights[uuid]

    def _check_not_configured(self, uuid: str) -> None:
        if uuid in self._configured:
            raise VmError(
                f"domain {uuid} stands in hostd's configuration ([[vm.allow]]); change it there "
                "and restart hostd"
            )
