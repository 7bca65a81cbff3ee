"""One libvirtd for all tests here, and hostd behind its hook."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.admin_socket import AdminSocket
from tests.fakes.libvirtd import Libvirtd, missing
from tests.tree import ROOT


@pytest.fixture(scope="session")
def one_libvirtd() -> Iterator[Libvirtd]:
    """It looks at QEMU when it first sees a domain, which takes four seconds."""
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    one = Libvirtd((ROOT / "qemu_hooks" / "qemu").read_text(encoding="utf-8"))
    yield one
    one.close()


@pytest.fixture
def libvirtd(one_libvirtd: Libvirtd) -> Iterator[Libvirtd]:
    """Without domains, before and after."""
    yield one_libvirtd
    one_libvirtd.clear()


@pytest.fixture
def stand_in(libvirtd: Libvirtd) -> Iterator[AdminSocket]:
    """A hostd that admits everything until it is told otherwise."""
    one = AdminSocket(libvirtd.admin_socket)
    one.results["vm_list"] = {
        "vms": [],
        "allowed": [],
        "folder": "/run/gpupool/vms",
        "relay": False,
    }
    yield one
    libvirtd.clear()  # its hook asks a last time
    one.close()
