"""What of a libvirt domain's XML is ours: the request for vGPUs, and what `vm attach` added.

Everything here is text in, text out. What was added is written down beside the request, so that
`vm detach` removes that and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from xml.dom import minidom
from xml.parsers.expat import ExpatError

from gpupool.cli.backend import BackendError, RefusedError

if TYPE_CHECKING:
    import jinja2

NAMESPACE = "https://gpupool.dev/xmlns/libvirt/1.0"
PREFIX = "gpupool"
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_CHARDEV, _DEVICE = "socket,id=gpupool-vsock,", "vhost-user-vsock-pci,id=gpupool-vsock0,"
_HIGHEST_SLOT = 0x1C  # above it Q35 has devices of its own; libvirt takes the low ones first


@dataclass(frozen=True, slots=True)
class AskedVgpu:
    """One element <vgpu>."""

    compute_percent: int
    memory_mib: int
    count: int = 1
    mode: str = "reserved"
    policy: str = "elastic"


@dataclass(frozen=True, slots=True)
class Added:
    """What `vm attach` added: the words of the element <added>."""

    devices: tuple[str, ...] = ()  # of window, vsock, relay
    memory: tuple[str, ...] = ()  # of source, access: children of <memoryBacking>
    controllers: tuple[str, ...] = ()  # indexes of PCI controllers that libvirt added for them
    right: bool = False  # it had no right before

    @property
    def any(self) -> bool:
        """Whether there is something to write down."""
        return bool(self.devices or self.memory or self.controllers or self.right)


@dataclass(frozen=True, slots=True)
class Request:
    """What a domain asks for. Nothing: it has none of our metadata."""

    vgpus: tuple[AskedVgpu, ...] = ()
    window_mib: int = 0
    channel: str = ""  # "vsock", "relay"; empty: it cannot reach the host
    added: Added = field(default_factory=Added)


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a domain is to have."""

    vgpus: tuple[AskedVgpu, ...]
    window_mib: int  # 0: none
    relay_socket: str = ""  # where QEMU dials our vsock device; empty: the kernel's


def window_name(uuid: str) -> str:
    """Of a domain's <shmem>; hostd makes the file of that name in /dev/shm."""
    return f"gpupool-{uuid}"


def request(xml: str) -> Request:
    """What stands in it. Raises RefusedError where our metadata is wrong."""
    return _Domain(xml).request()


def has_ours(xml: str) -> bool:
    """Whether it has our metadata, or our window."""
    return _Domain(xml).has_ours()


def cid(xml: str) -> int:
    """Of its vsock device, as far as it is known; 0: it has none, or libvirt has yet to choose."""
    return _Domain(xml).cid()


def attached(xml: str, wanted: Attachment, right: bool) -> str:
    """The same domain with what is wanted, and nothing of an earlier attach. Raises RefusedError.

    `right`: whether it gets its right with this.
    """
    domain = _Domain(xml)
    domain.detach()
    domain.attach(wanted, right)
    return domain.text()


def detached(xml: str) -> str:
    """The same domain as it was before `attached`."""
    domain = _Domain(xml)
    domain.detach()
    return domain.text()


def controllers(xml: str) -> tuple[str, ...]:
    """Indexes of its PCI controllers."""
    return tuple(index for index, _ in _Domain(xml).pci_controllers())


def with_controllers(asked: Request, before: tuple[str, ...], after: tuple[str, ...]) -> Request:
    """The same, with the controllers that came between the two."""
    new = tuple(index for index in after if index not in before)
    return replace(asked, added=replace(asked.added, controllers=new))


def metadata(asked: Request, prefix: str = f"{PREFIX}:") -> str:
    """Our element. libvirt's call that sets metadata wants no prefix, and gives it ours."""
    return _render(
        "metadata.xml", namespace=NAMESPACE, prefix=prefix, vgpus=asked.vgpus, added=asked.added
    )


def shmem(uuid: str, window_mib: int) -> str:
    """The device that shows a window to the guest."""
    return _render("shmem.xml", window=window_name(uuid), window_mib=window_mib)


def vsock() -> str:
    """The kernel's vsock device, with a CID that libvirt chooses."""
    return _render("vsock.xml")


class _Domain:
    """One domain's XML, opened."""

    def __init__(self, xml: str) -> None:
        try:
            # From libvirt itself, which writes no document type and no entities.
            self._document = minidom.parseString(xml)  # noqa: S318
        except ExpatError as error:
            raise BackendError(f"libvirt's XML of the domain cannot be read: {error}") from error
        self._root: Any = self._document.documentElement
        self._uuid = _text(self._child(self._root, "uuid"))

    def text(self) -> str:
        """As libvirt takes it."""
        return str(self._root.toxml())

    def request(self) -> Request:
        """What stands in it."""
        ours = self._ours()
        vgpus = [one for element in ours for one in self._vgpus_in(element)]
        window_mib = 0
        if shmems := self._windows():
            size = self._child(shmems[0], "size")
            window_mib = _number(_text(size), "the size of the window") if size is not None else 4
        channel = "vsock" if self._children(self._child(self._root, "devices"), "vsock") else ""
        if self._relay_arguments():
            channel = "relay"
        return Request(tuple(vgpus), window_mib, channel, self._added())

    def has_ours(self) -> bool:
        """Metadata or window."""
        return bool(self._ours() or self._windows())

    def cid(self) -> int:
        """Of its vsock device."""
        device = self._child(self._child(self._root, "devices"), "vsock")
        number = self._child(device, "cid")
        text = number.getAttribute("address") if number is not None else ""
        return int(text) if text.isdecimal() else 0

    def pci_controllers(self) -> list[tuple[str, Any]]:
        """Index and element of each."""
        devices = self._child(self._root, "devices")
        return [
            (str(one.getAttribute("index")), one)
            for one in self._children(devices, "controller")
            if one.getAttribute("type") == "pci"
        ]

    def attach(self, wanted: Attachment, right: bool) -> None:
        """Adds it to a domain that has nothing of it."""
        devices: list[str] = []
        memory: list[str] = []
        parent = self._need(self._root, "devices")
        has_vsock = bool(self._children(parent, "vsock"))
        if wanted.window_mib:
            self._append(parent, shmem(self._uuid, wanted.window_mib))
            devices.append("window")
        if wanted.relay_socket:
            if has_vsock:
                raise RefusedError(
                    "the domain has a device <vsock> of its own, and a guest uses one only: remove "
                    "that (virsh edit), or attach without --relay"
                )
            memory = self._share_memory()
            self._add_relay(wanted.relay_socket)
            devices.append("relay")
        elif not has_vsock:
            self._append(parent, vsock())
            devices.append("vsock")
        added = Added(tuple(devices), tuple(memory), (), right)
        written = metadata(Request(wanted.vgpus, added=added))
        self._append(self._need(self._root, "metadata"), written)

    def detach(self) -> None:
        """Removes what attach() added, and our metadata."""
        added = self._added()
        self._detach_devices(added)
        self._detach_memory(added)
        for element in self._ours():
            self._remove(element)
        around = self._child(self._root, "metadata")
        if around is not None and not self._elements(around):
            self._remove(around)
        # The last first: a bridge stands behind a port.
        for index, element in reversed(self.pci_controllers()):
            if index in added.controllers and index not in self._used_buses():
                self._remove(element)

    def _detach_devices(self, added: Added) -> None:
        devices = self._child(self._root, "devices")
        vsocks = self._children(devices, "vsock") if "vsock" in added.devices else []
        windows = self._windows()
        if "window" in added.devices:
            # A cloned domain has that of the one that it was cloned from.
            windows = [
                one
                for one in self._children(devices, "shmem")
                if str(one.getAttribute("name")).startswith(window_name(""))
            ]
        for element in (*windows, *vsocks, *self._relay_arguments()):
            self._remove(element)

    def _detach_memory(self, added: Added) -> None:
        backing = self._child(self._root, "memoryBacking")
        if backing is None:
            return
        for name in added.memory:
            for element in self._children(backing, name):
                self._remove(element)
        if not self._elements(backing):
            self._remove(backing)

    def _ours(self) -> list[Any]:
        around = self._child(self._root, "metadata")
        return [one for one in self._elements(around) if one.namespaceURI == NAMESPACE]

    def _vgpus_in(self, element: Any) -> list[AskedVgpu]:
        if element.localName == "vgpu":
            return [_vgpu(element)]
        inner = self._elements(element)
        return [_vgpu(one) for one in inner if one.localName == "vgpu"]

    def _added(self) -> Added:
        for element in self._ours():
            for one in self._elements(element):
                if one.localName == "added":
                    return Added(
                        tuple(one.getAttribute("devices").split()),
                        tuple(one.getAttribute("memory").split()),
                        tuple(one.getAttribute("controllers").split()),
                        one.getAttribute("right") == "yes",
                    )
        return Added()

    def _windows(self) -> list[Any]:
        shmems = self._children(self._child(self._root, "devices"), "shmem")
        return [one for one in shmems if one.getAttribute("name") == window_name(self._uuid)]

    def _relay_arguments(self) -> list[Any]:
        """Our <qemu:arg>s, the option before each included; then their parent if that is all."""
        parents = [
            one
            for one in self._elements(self._root)
            if (one.namespaceURI, one.localName) == (_QEMU, "commandline")
        ]
        found = []
        for parent in parents:
            arguments = self._elements(parent)
            ours = []
            for before, one in pairwise(arguments):
                if str(one.getAttribute("value")).startswith((_CHARDEV, _DEVICE)):
                    ours += [before, one]
            found += ours
            if ours and len(ours) == len(arguments):
                found.append(parent)
        return found

    def _share_memory(self) -> list[str]:
        """A vhost-user device maps the guest's memory. What was added to <memoryBacking>."""
        backing = self._need(self._root, "memoryBacking")
        added = []
        for name, key, good, wanted in (
            ("source", "type", ("memfd", "file"), "<source type='memfd'/>"),
            ("access", "mode", ("shared",), "<access mode='shared'/>"),
        ):
            present = self._child(backing, name)
            if present is None:
                self._append(backing, wanted)
                added.append(name)
            elif present.getAttribute(key) not in good:
                raise RefusedError(
                    f"the domain's <memoryBacking> has <{name} {key}={present.getAttribute(key)!r}>"
                    f", and the relay needs {wanted}; change that (virsh edit) first"
                )
        cells = [
            cell
            for numa in self._children(self._child(self._root, "cpu"), "numa")
            for cell in self._children(numa, "cell")
        ]
        if any(cell.getAttribute("memAccess") == "private" for cell in cells):
            raise RefusedError(
                "a NUMA cell of the domain has memAccess='private', and the relay needs shared "
                "memory; change that (virsh edit) first"
            )
        return added

    def _add_relay(self, path: str) -> None:
        machine = str(self._child(self._child(self._root, "os"), "type").getAttribute("machine"))
        bus = "pcie.0" if "q35" in machine or machine.startswith("virt") else ""
        if machine.startswith("pc-i440fx") or machine == "pc":
            bus = "pci.0"
        # A fixed address, so that it stays the same device to the guest, and hot-plug of others
        # does not find its slot taken. QEMU chooses on machines whose buses we do not know.
        slot = self._free_slot() if bus else ""
        text = _render("relay.xml", socket=path.replace(",", ",,"), bus=bus, slot=slot)
        present = [
            one
            for one in self._elements(self._root)
            if (one.namespaceURI, one.localName) == (_QEMU, "commandline")
        ]
        if present:
            for argument in self._elements(self._parse(text)):
                present[0].appendChild(self._document.importNode(argument, deep=True))
        else:
            self._append(self._root, text)

    def _free_slot(self) -> str:
        used = {
            int(one.getAttribute("slot"), 16)
            for one in self._root.getElementsByTagName("address")
            if one.getAttribute("type") == "pci" and int(one.getAttribute("bus") or "0", 16) == 0
        }
        free = [slot for slot in range(_HIGHEST_SLOT, 1, -1) if slot not in used]
        if not free:
            raise RefusedError("the domain's PCI bus 0 is full; remove a device first")
        return f"{free[0]:#04x}"

    def _used_buses(self) -> set[str]:
        return {
            str(int(one.getAttribute("bus"), 16))
            for one in self._root.getElementsByTagName("address")
            if one.getAttribute("type") == "pci" and one.getAttribute("bus")
        }

    def _append(self, parent: Any, text: str) -> None:
        parent.appendChild(self._document.importNode(self._parse(text), deep=True))

    @staticmethod
    def _parse(text: str) -> Any:
        return minidom.parseString(text).documentElement  # noqa: S318 (our own template)

    def _need(self, parent: Any, name: str) -> Any:
        found = self._child(parent, name)
        if found is None:
            found = parent.appendChild(self._document.createElement(name))
        return found

    def _child(self, parent: Any, name: str) -> Any:
        found = self._children(parent, name)
        return found[0] if found else None

    def _children(self, parent: Any, name: str) -> list[Any]:
        return [one for one in self._elements(parent) if one.tagName == name]

    @staticmethod
    def _elements(parent: Any) -> list[Any]:
        if parent is None:
            return []
        return [one for one in parent.childNodes if one.nodeType == one.ELEMENT_NODE]

    @staticmethod
    def _remove(element: Any) -> None:
        element.parentNode.removeChild(element)


def _vgpu(element: Any) -> AskedVgpu:
    read = element.getAttribute
    return AskedVgpu(
        _number(read("compute") or "0", "compute"),
        _number(read("memory") or "0", "memory"),
        _number(read("count") or "1", "count"),
        read("mode") or "reserved",
        read("policy") or "elastic",
    )


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise RefusedError(f"the domain's metadata is wrong: {what} is {text!r}, and no number")
    return int(text)


def _text(element: Any) -> str:
    if element is None:
        return ""
    return "".join(one.data for one in element.childNodes if one.nodeType == one.TEXT_NODE).strip()


def _render(name: str, **values: object) -> str:
    return _templates().get_template(f"{name}.j2").render(**values)


@cache
def _templates() -> jinja2.Environment:
    try:
        import jinja2
    except ImportError as error:
        raise BackendError(
            "Jinja2 is not installed for this Python: pip install 'gpupool[libvirt]'"
        ) from error
    folder = resources.files("gpupool") / "templates" / "libvirt"
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
    )
