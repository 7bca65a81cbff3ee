"""One libvirtd for all tests here, and hostd behind its hook."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import native as fake_native
from tests.fakes.admin_socket import AdminSocket
from tests.fakes.daemon import Daemon
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


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fake native files, compiled once, with the real relay."""
    relay = Path(os.environ.get("GPUPOOL_NATIVE_DIR", "/nonexistent"), "libexec", "gpupool-vsock")
    if shutil.which("g++") is None or not relay.exists():
        pytest.skip("g++ or the built relay (libexec/gpupool-vsock) is missing")
    folder = fake_native.build(tmp_path_factory.mktemp("native"))
    (folder / "libexec" / "gpupool-vsock").symlink_to(relay)
    return folder


@pytest.fixture
def hostd(libvirtd: Libvirtd, native: Path) -> Iterator[Daemon]:
    """A real one, where the hook looks for it. Not started yet."""
    one = Daemon(native, libvirtd.folder / "gpupool")
    yield one
    libvirtd.clear()
    one.clean_up()
    for left in (one.folder / "vms").glob("*"):  # where the test has failed
        Path(f"/dev/shm/gpupool-{left.name}").unlink(missing_ok=True)  # noqa: S108
    for left in one.folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
