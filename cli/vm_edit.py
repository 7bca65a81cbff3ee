"""Gives a domain its vGPUs, and takes them away: in its definition, and live where it can be."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from gpupool.cli import domain
from gpupool.cli.backend import BackendError, Local, RefusedError
from gpupool.cli.domain import AskedVgpu, Attachment
from gpupool.cli.libvirt_domains import Domain
from gpupool.cli.model import VmHost, VmRight

_VHOST_VSOCK = Path("/dev/vhost-vsock")


@dataclass(slots=True)
class Outcome:
    """What was done, in words."""

    uuid: str
    name: str
    live: list[str] = field(default_factory=list)  # now
    next_start: list[str] = field(default_factory=list)  # when the domain starts next
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Wish:
    """What was said on the command line."""

    vgpu: AskedVgpu
    window_mib: int
    relay: bool
    tenant: str


class Editor:
    """One domain, and the hostd of its machine; None: not to be asked."""

    def __init__(self, one: Domain, hostd: Local | None) -> None:
        self._domain = one
        self._hostd = hostd
        self._host: VmHost | None = hostd.vm_host() if hostd is not None else None
        self._outcome = Outcome(one.uuid, one.name)

    def attach(self, wish: Wish) -> Outcome:
        """Raises BackendError, and has then changed nothing, unless it fails on the way."""
        one = self._domain
        wanted = Attachment((wish.vgpu,), wish.window_mib, self._relay_socket(wish.relay))
        old = self._right()
        xml = one.xml(live=not one.persistent)
        # Ours to take away again, where we gave it.
        right = self._hostd is not None and (old is None or domain.request(xml).added.right)
        before = domain.detached(xml)
        edited = domain.attached(before, wanted, right)
        self._allow(wish)
        try:
            if one.running:
                self._attach_live(wanted, right)
            if one.persistent:
                self._define(before, edited)
        except BackendError:
            self._restore(old)
            raise
        return self._outcome

    def detach(self) -> Outcome:
        """Raises BackendError."""
        one, right = self._domain, False
        if one.persistent:
            xml = one.xml(live=False)
            right = domain.request(xml).added.right
            edited = domain.detached(xml)
            if domain.has_ours(xml):
                one.define(edited)
                self._outcome.next_start.append("no vGPU")
        if one.running and domain.has_ours(one.xml(live=True)):
            right = domain.request(one.xml(live=True)).added.right or right
            self._detach_live()
        if right and self._hostd is not None:
            allowed = self._right()
            if allowed is not None and not allowed.configured:
                self._hostd.disallow_vm(one.uuid)
                self._outcome.notes.append("it has no right to a vGPU any more")
        elif right:
            self._outcome.notes.append(
                f"hostd was not asked: its right stays (gpupool vm disallow {one.uuid})"
            )
        if not self._outcome.live and not self._outcome.next_start:
            raise RefusedError(f"domain {one.name} has no vGPU")
        return self._outcome

    def _relay_socket(self, relay: bool) -> str:
        if self._host is not None:
            relay = relay or self._host.relay
        elif self._domain.libvirt.is_local:
            relay = relay or not _VHOST_VSOCK.exists()
        if not relay:
            return ""
        if self._host is not None and not self._host.relay:
            raise RefusedError(
                '--relay was asked for, and hostd makes no relays: set vm.relay = "yes" in its '
                "configuration, or leave --relay out"
            )
        folder = self._host.folder if self._host is not None else "/run/gpupool/vms"
        return f"{folder}/{self._domain.uuid}/vhost"

    def _right(self) -> VmRight | None:
        rights = self._host.rights if self._host is not None else ()
        return next((one for one in rights if one.uuid == self._domain.uuid), None)

    def _allow(self, wish: Wish) -> None:
        if self._hostd is None:
            self._outcome.notes.append(
                "hostd was not asked: on the domain's machine run gpupool vm allow "
                f"{self._domain.uuid}"
            )
            return
        vgpu, old = wish.vgpu, self._right()
        needed = VmRight(
            self._domain.uuid,
            self._domain.name,
            wish.tenant,
            vgpu.compute_percent * vgpu.count,
            vgpu.memory_mib * vgpu.count,
            vgpu.count,
        )
        right = needed if old is None else _covering(old, needed)
        if right != old:
            self._hostd.allow_vm(right)

    def _restore(self, old: VmRight | None) -> None:
        """What it was allowed before."""
        if self._hostd is None or (old is not None and old.configured):
            return
        if old is None:
            self._hostd.disallow_vm(self._domain.uuid)
        else:
            self._hostd.allow_vm(old)

    def _define(self, before: str, edited: str) -> None:
        one = self._domain
        one.define(edited)
        after = one.xml(live=False)
        asked = domain.with_controllers(
            domain.request(after), domain.controllers(before), domain.controllers(after)
        )
        if asked.added.controllers:
            one.set_metadata(asked, live=False)
        self._outcome.next_start += _words(asked)

    def _attach_live(self, wanted: Attachment, right: bool) -> None:
        one, hostd = self._domain, self._hostd
        if hostd is None or self._host is None:
            self._outcome.notes.append("nothing changes before its next start: hostd was not asked")
            return
        have = domain.request(one.xml(live=True))
        devices: list[str] = list(have.added.devices)
        vgpus = [dataclasses.asdict(vgpu) for vgpu in wanted.vgpus]
        if any(vm.uuid == one.uuid for vm in self._host.vms):
            hostd.change_vm(one.uuid, vgpus)
            if have.window_mib != wanted.window_mib:
                self._outcome.notes.append("its window changes with its next start")
        else:
            why = self._channel_live(wanted, have.channel)
            if why:
                self._outcome.notes.append(f"nothing changes before its next start: {why}")
                return
            if not have.channel:
                devices.append("vsock")
            try:
                devices += self._prepare_live(hostd, vgpus, wanted.window_mib, have.window_mib)
            except BackendError:
                with contextlib.suppress(BackendError):  # why it failed is what is told
                    hostd.release_vm(one.uuid)
                if not have.channel:
                    one.unplug(domain.vsock())
                raise
        added = dataclasses.replace(have.added, devices=tuple(devices), right=right)
        one.set_metadata(domain.Request(wanted.vgpus, added=added), live=True)
        self._outcome.live += _words(domain.request(one.xml(live=True)))

    def _channel_live(self, wanted: Attachment, channel: str) -> str:
        """Why the running domain cannot reach the host; empty: it can."""
        if wanted.relay_socket:
            # Nor does QEMU dial the relay again, where one was there before.
            return "the relay's device cannot be plugged into a running domain"
        return "" if channel else self._domain.plug(domain.vsock())

    def _prepare_live(
        self, hostd: Local, vgpus: list[dict[str, object]], window_mib: int, has_mib: int
    ) -> list[str]:
        """What the hook does at a start; devices that were plugged in."""
        one = self._domain
        cid = domain.cid(one.xml(live=True))
        hostd.prepare_vm(one.uuid, one.name, vgpus, window_mib, cid)
        plugged = []
        if window_mib and not has_mib:
            why = one.plug(domain.shmem(one.uuid, window_mib))
            if why:
                self._outcome.notes.append(f"its window comes with its next start: {why}")
                hostd.release_vm(one.uuid)
                hostd.prepare_vm(one.uuid, one.name, vgpus, 0, cid)
            else:
                plugged.append("window")
        hostd.started_vm(one.uuid, cid)
        return plugged

    def _detach_live(self) -> None:
        one = self._domain
        have = domain.request(one.xml(live=True))
        if self._hostd is not None:
            self._hostd.release_vm(one.uuid)
        else:
            self._outcome.notes.append(
                "hostd was not asked: it frees the vGPU when the domain ends"
            )
        for device, text in (
            ("window", domain.shmem(one.uuid, have.window_mib)),
            ("vsock", domain.vsock()),
        ):
            if device in have.added.devices:
                why = one.unplug(text)
                if why:
                    self._outcome.notes.append(f"its {device} stays until it is shut down: {why}")
        if "relay" in have.added.devices:
            self._outcome.notes.append("its vsock device stays until it is shut down")
        one.set_metadata(None, live=True)
        self._outcome.live.append("no vGPU")


def _covering(old: VmRight, needed: VmRight) -> VmRight:
    """A right is made larger for what is asked for, and never smaller."""
    unlimited = not old.memory_mib or not needed.memory_mib
    return dataclasses.replace(
        old,
        name=needed.name,
        tenant=needed.tenant or old.tenant,
        compute_percent=max(old.compute_percent, needed.compute_percent),
        memory_mib=0 if unlimited else max(old.memory_mib, needed.memory_mib),
        vgpus=max(old.vgpus, needed.vgpus),
    )


def _words(asked: domain.Request) -> list[str]:
    words = [
        f"{one.count} vGPU{'s' if one.count > 1 else ''} of {one.compute_percent}% and "
        f"{f'{one.memory_mib} MiB' if one.memory_mib else 'unlimited memory'}"
        for one in asked.vgpus
    ]
    if asked.window_mib:
        words.append(f"a window of {asked.window_mib} MiB")
    if asked.channel:
        words.append("vsock" if asked.channel == "vsock" else "vsock through the relay")
    return words
