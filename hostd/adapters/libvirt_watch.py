"""Follows libvirt's domains in a thread of its own, and tells the event loop what it sees.

Needs libvirt-python (`gpupool[libvirt]`), and only reads. libvirt that is away or goes away is
dialled again; whoever waits for hostd never waits for libvirt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.vgpu import DEFAULT_PRIORITY, Quota, SharePolicy, VgpuMode
from gpupool.hostd.core.vm import MOST_VGPUS, VmVgpu
from gpupool.hostd.core.vm_follow import SeenDomain
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

NAMESPACE = "https://gpupool.dev/xmlns/libvirt/1.0"
_RETRY_S = 5.0
_END_S = 5.0
_DEFAULT_WINDOW_MIB = 4  # of a <shmem> without a size


class LibvirtWatch:
    """One libvirt."""

    def __init__(
        self,
        uri: str,
        running: Callable[[list[SeenDomain]], None],
        changed: Callable[[SeenDomain], None],
    ) -> None:
        """Both are called in the event loop. Raises PortError where libvirt-python is missing."""
        try:
            import libvirt
        except ImportError as error:
            raise PortError(
                f"vm.libvirt_uri is {uri!r}, and libvirt's Python module is missing: pip install "
                "'gpupool[libvirt]', or leave vm.libvirt_uri out"
            ) from error
        self._libvirt: Any = libvirt
        self._uri = uri
        self._running = running
        self._changed = changed
        self._stopping = threading.Event()
        self._closed = False
        self._seen: list[Any] = []  # domains of which an event told
        self._timer = -1
        self._thread = threading.Thread(target=self._run, name="libvirt", daemon=True)

    def start(self) -> None:
        """In the running event loop."""
        self._loop = asyncio.get_running_loop()
        # It prints every error itself otherwise.
        self._libvirt.registerErrorHandler(lambda *_: None, None)
        self._libvirt.virEventRegisterDefaultImpl()
        # Never due: it is there to wake the thread.
        self._timer = self._libvirt.virEventAddTimeout(-1, lambda *_: None, None)
        self._thread.start()

    def stop(self) -> None:
        """Waits a moment for the thread; one that hangs in libvirt ends with the process."""
        self._stopping.set()
        self._libvirt.virEventUpdateTimeout(self._timer, 0)
        self._thread.join(_END_S)

    def _run(self) -> None:
        told = False
        while not self._stopping.is_set():
            try:
                connection = self._libvirt.openReadOnly(self._uri)
            except self._libvirt.libvirtError as error:
                if not told:
                    facts = {"uri": self._uri, "error": str(error)}
                    log.warning("libvirt is not reached, tried again", extra=fields(facts))
                told = True
                self._stopping.wait(_RETRY_S)
                continue
            told = False
            try:
                self._follow(connection)
            except Exception as error:  # an accident is told, and ends nothing
                log.exception("libvirt failed", extra=fields({"error": str(error)}))
                self._stopping.wait(_RETRY_S)
            finally:
                with contextlib.suppress(self._libvirt.libvirtError):
                    connection.close()

    def _follow(self, connection: Any) -> None:
        """Until libvirt goes away, or we stop."""
        library = self._libvirt
        self._closed = False
        self._seen.clear()
        connection.registerCloseCallback(self._on_close, None)
        connection.domainEventRegisterAny(
            None, library.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, self._on_metadata, None
        )
        # After the events are asked for, so that nothing falls between.
        active = connection.listAllDomains(library.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        found = [one for domain in active if (one := self._look(domain)) is not None]
        self._tell(self._running, found)
        log.info("following libvirt", extra=fields({"uri": self._uri, "running": len(found)}))
        while not self._closed and not self._stopping.is_set():
            library.virEventRunDefaultImpl()
            seen, self._seen = self._seen, []
            for domain in seen:
                one = self._look(domain)
                if one is not None:
                    self._tell(self._changed, one)

    def _look(self, domain: Any) -> SeenDomain | None:
        """None where it does not run, any more."""
        try:
            return read(domain.XMLDesc()) if domain.isActive() else None
        except self._libvirt.libvirtError:
            return None

    def _tell(self, what: Callable[[Any], None], argument: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what, argument)

    def _on_metadata(self, _connection: Any, domain: Any, _kind: int, uri: str, _: None) -> None:
        if uri == NAMESPACE:
            self._seen.append(domain)

    def _on_close(self, _connection: Any, _reason: int, _: None) -> None:
        self._closed = True


def read(xml: str) -> SeenDomain:
    """A domain from libvirt's XML."""
    root = ElementTree.fromstring(xml)  # noqa: S314 (libvirt wrote it)
    uuid = root.findtext("uuid", "").lower()
    wanted: list[VmVgpu] = []
    problem = ""
    try:
        for top in root.iterfind(f"metadata/{{{NAMESPACE}}}*"):
            for one in [top] if _name(top) == "vgpu" else top.iterfind(f"{{{NAMESPACE}}}vgpu"):
                wanted += _vgpus(one)
    except ValueError as error:
        problem = str(error)
    cid = root.find("devices/vsock/cid")
    return SeenDomain(
        uuid,
        root.findtext("name", ""),
        tuple(wanted),
        _window_mib(root, uuid),
        int(cid.get("address", "0")) if cid is not None else 0,
        problem,
    )


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _vgpus(element: ElementTree.Element) -> list[VmVgpu]:
    """Raises ValueError; ranges are the core's to check."""
    quota = Quota(
        int(element.get("compute", "0")),
        int(element.get("memory", "0")),
        SharePolicy(element.get("policy", SharePolicy.ELASTIC.value)),
        DEFAULT_PRIORITY,
    )
    count = int(element.get("count", "1"))
    if not 1 <= count <= MOST_VGPUS:
        raise ValueError(f"count: given {count}, allowed is 1 to {MOST_VGPUS}")
    return [VmVgpu(quota, VgpuMode(element.get("mode", VgpuMode.RESERVED.value)))] * count


def _window_mib(root: ElementTree.Element, uuid: str) -> int:
    for one in root.iterfind("devices/shmem"):
        if one.get("name") == f"gpupool-{uuid}":
            return int(one.findtext("size", str(_DEFAULT_WINDOW_MIB)))  # libvirt writes MiB
    return 0
