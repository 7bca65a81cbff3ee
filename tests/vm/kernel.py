"""Debian's kernel for the guests of these tests: fetched once, unpacked into build/vm.

`python -m tests.vm.kernel` fetches it ahead of the tests, as `./run test` does.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.tree import ROOT

FOLDER = ROOT / "build" / "vm"
# The cloud kernel is smaller and boots sooner but has no 9p.
PACKAGE = "linux-image-amd64"
# What a guest needs; the modules that these need are found in them.
WANTED = (
    "virtio_pci",
    "virtio_console",
    "9p",
    "9pnet_virtio",
    "overlay",
    "vmw_vsock_virtio_transport",
    "virtio-rng",
    "virtio_net",
)


class MissingError(Exception):
    """No kernel for the tests; the text says what is missing."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: its image, and its modules in the order in which they load."""

    image: Path
    modules: tuple[Path, ...]


def find(folder: Path = FOLDER) -> Kernel:
    """The unpacked kernel, fetched if it is not there. Raises MissingError."""
    images = sorted(folder.glob("root/boot/vmlinuz-*"))
    if not images and folder == FOLDER:
        fetch()
        images = sorted(folder.glob("root/boot/vmlinuz-*"))
    if not images:
        raise MissingError(f"{PACKAGE} holds no kernel")
    version = images[-1].name.removeprefix("vmlinuz-")
    return Kernel(images[-1], in_loading_order(folder / "root" / "lib" / "modules" / version))


def in_loading_order(folder: Path) -> tuple[Path, ...]:
    """WANTED and what they need, the needed first. What is built into the kernel is left out."""
    files = {_name(path.stem): path for path in (folder / "kernel").rglob("*.ko")}
    order: list[Path] = []

    def add(name: str) -> None:
        path = files.get(_name(name))
        if path is None or path in order:
            return
        # modinfo(8) reads the same: zero-terminated texts in the section .modinfo.
        found = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for needed in found.group(1).decode().split(",") if found else ():
            add(needed)
        order.append(path)

    for name in WANTED:
        add(name)
    return tuple(order)


def _name(module: str) -> str:
    return module.replace("-", "_")


def fetch() -> None:
    """Downloads the package with apt and unpacks image and modules. Raises MissingError."""
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise MissingError(f"{tool} is missing; Debian's kernel is fetched with it")
    FOLDER.mkdir(parents=True, exist_ok=True)
    about = _run("apt-cache", "show", "--no-all-versions", PACKAGE)
    name = re.search(r"^Depends:.*?(linux-image-[\w.+-]+)", about, re.MULTILINE)
    if name is None:
        raise MissingError(f"apt knows no {PACKAGE}; Debian has it, after apt-get update")
    work = FOLDER / "download"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        _run("apt-get", "download", name.group(1), folder=work)
        archive = next(iter(work.glob("*.deb")), None)
        if archive is None:
            raise MissingError(f"apt-get download {name.group(1)} left no file")
        _run("dpkg-deb", "--extract", str(archive), str(work / "root"))
        shutil.rmtree(FOLDER / "root", ignore_errors=True)
        (work / "root").rename(FOLDER / "root")  # whole or not at all
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(*command: str, folder: Path | None = None) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MissingError(f"{' '.join(command[:3])}: {lines[-1]}")
    return done.stdout


if __name__ == "__main__":
    try:
        print(find().image)
    except MissingError as problem:
        print(f"no kernel for tests/vm: {problem}", file=sys.stderr)
        sys.exit(1)
