"""Domains of this host (or another) through libvirt: found, and edited, also while they run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from gpupool.cli import domain
from gpupool.cli.backend import BackendError, RefusedError

DEFAULT_URI = "qemu:///system"


class Libvirt:
    """One connection."""

    def __init__(self, uri: str) -> None:
        """Raises BackendError."""
        try:
            import libvirt
        except ImportError as error:
            raise BackendError(
                "libvirt's Python module is missing: pip install 'gpupool[libvirt]', with "
                "pkg-config and libvirt-dev (libvirt-devel) installed; without it, edit the domain "
                "by hand (docs/vms.md)"
            ) from error
        self.library: Any = libvirt
        # It prints every error itself otherwise.
        libvirt.registerErrorHandler(lambda *_: None, None)
        self.uri = uri
        with self.telling(f"libvirt at {uri}"):
            self._connection = libvirt.open(uri)

    @property
    def is_local(self) -> bool:
        """Whether its domains run on this machine."""
        return not urlsplit(self.uri).netloc

    def find(self, name: str) -> Domain:
        """By name or UUID. Raises BackendError."""
        with self.telling(f"domain {name!r}"):
            try:
                return Domain(self, self._connection.lookupByUUIDString(name))
            except self.library.libvirtError:
                return Domain(self, self._connection.lookupByName(name))

    def names(self) -> dict[str, str]:
        """UUID -> name of all of them. Raises BackendError."""
        with self.telling(f"libvirt at {self.uri}"):
            found = self._connection.listAllDomains()
            return {one.UUIDString(): one.name() for one in found}

    def close(self) -> None:
        """Ends it."""
        self._connection.close()

    @contextlib.contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """libvirt's errors as ours."""
        try:
            yield
        except self.library.libvirtError as error:
            missing = error.get_error_code() == self.library.VIR_ERR_NO_DOMAIN
            kind = RefusedError if missing else BackendError
            raise kind(f"{what}: {error}") from error


@dataclass(frozen=True, slots=True)
class Domain:
    """One domain. Everything here raises BackendError."""

    libvirt: Libvirt
    handle: Any

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.handle.name())

    @property
    def uuid(self) -> str:
        """Lower case, with dashes."""
        return str(self.handle.UUIDString())

    @property
    def running(self) -> bool:
        """Whether there is a live one."""
        return bool(self.handle.isActive())

    @property
    def persistent(self) -> bool:
        """Whether there will be a next start."""
        return bool(self.handle.isPersistent())

    def xml(self, live: bool) -> str:
        """All of it: what is left out would be lost when it is defined again."""
        flags = self.libvirt.library.VIR_DOMAIN_XML_SECURE
        if not live:
            flags |= self.libvirt.library.VIR_DOMAIN_XML_INACTIVE
        with self.libvirt.telling(f"domain {self.name}"):
            return str(self.handle.XMLDesc(flags))

    def define(self, xml: str) -> None:
        """For the next start, checked by libvirt's own schema."""
        library = self.libvirt.library
        with self.libvirt.telling(f"domain {self.name}"):
            self.handle.connect().defineXMLFlags(xml, library.VIR_DOMAIN_DEFINE_VALIDATE)

    def set_metadata(self, asked: domain.Request | None, live: bool) -> None:
        """Replaces our element; None removes it."""
        library = self.libvirt.library
        text = None if asked is None else domain.metadata(asked, prefix="")
        kind = library.VIR_DOMAIN_METADATA_ELEMENT
        where = library.VIR_DOMAIN_AFFECT_LIVE if live else library.VIR_DOMAIN_AFFECT_CONFIG
        key = None if text is None else domain.PREFIX
        with self.libvirt.telling(f"domain {self.name}"):
            self.handle.setMetadata(kind, text, key, domain.NAMESPACE, where)

    def plug(self, xml: str) -> str:
        """Into the running one; why not, or empty."""
        library = self.libvirt.library
        try:
            self.handle.attachDeviceFlags(xml, library.VIR_DOMAIN_AFFECT_LIVE)
        except library.libvirtError as error:
            return str(error)
        return ""

    def unplug(self, xml: str) -> str:
        """Asks the guest to let go of it; why not, or empty."""
        library = self.libvirt.library
        try:
            self.handle.detachDeviceFlags(xml, library.VIR_DOMAIN_AFFECT_LIVE)
        except library.libvirtError as error:
            return str(error)
        return ""
