"""QEMU, a kernel and busybox as one archive, for a machine where nothing can be installed.

`python -m tests.vm.bundle build/vm-bundle.tar.xz` on a Debian that has what tests/vm needs. There,
GPUPOOL_TEST_VM_BUNDLE names the archive, and tests/gpu/test_vm.py unpacks and uses it. It holds the
dynamic linker and libraries as well, so that the other machine's glibc does not matter.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.vm import initramfs, kernel, machine
from tests.vm.kernel import MissingError

# Firmware that QEMU's machine q35 loads for -kernel, without a screen and a network card.
_FIRMWARE = ("bios-256k.bin", "linuxboot_dma.bin", "kvmvapic.bin")
_FIRMWARE_FOLDERS = ("/usr/share/qemu", "/usr/share/seabios")
_MODULES = ("accel-tcg-x86_64.so",)
_WRAPPER = """\
#!/bin/sh
cd "$(dirname "$(dirname "$(readlink -f "$0")")")"
export QEMU_MODULE_DIR="$PWD/modules"
exec lib/ld-linux-x86-64.so.2 --library-path "$PWD/lib" "$PWD/lib/qemu" -L "$PWD/share" "$@"
"""


def make(target: Path) -> None:
    """Writes the archive. Raises MissingError."""
    found = kernel.find()
    with tempfile.TemporaryDirectory(prefix="gpupool-bundle-") as name:
        folder = Path(name)
        for part in ("bin", "lib", "share", "modules"):
            (folder / part).mkdir()
        _add_qemu(folder)
        _copy_stripped(initramfs.busybox(), folder / "bin" / "busybox")
        _add_kernel(found, folder)
        with tarfile.open(target, "w:xz", preset=6) as archive:
            archive.add(folder, ".")


def unpack(archive: Path, folder: Path) -> Path:
    """Puts an archive of `make` there and its programs first on this process's PATH; the folder of
    its kernel, for `kernel.find`.
    """
    with tarfile.open(archive) as opened:
        opened.extractall(folder)  # noqa: S202 (our own archive)
    os.environ["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    return folder


def _add_qemu(folder: Path) -> None:
    program = Path(machine.qemu()).resolve()
    _copy_stripped(program, folder / "lib" / "qemu")
    source = next(Path("/usr/lib").glob("*/qemu/accel-tcg-x86_64.so"), None)
    if source is None:
        raise MissingError("accel-tcg-x86_64.so is not where Debian has QEMU's modules")
    for module in _MODULES:
        _copy_stripped(source.parent / module, folder / "modules" / module)
    for library in _libraries(program):
        _copy_stripped(library.resolve(), folder / "lib" / library.name)
    for name in _FIRMWARE:
        places = [Path(each) / name for each in _FIRMWARE_FOLDERS]
        place = next((each for each in places if each.exists()), None)
        if place is None:
            raise MissingError(f"{name} is in none of {', '.join(_FIRMWARE_FOLDERS)}")
        shutil.copy(place, folder / "share" / name)
    wrapper = folder / "bin" / "qemu-system-x86_64"
    wrapper.write_text(_WRAPPER)
    wrapper.chmod(0o755)


def _libraries(program: Path) -> list[Path]:
    """What it needs, the dynamic linker among them."""
    listed = subprocess.run(
        ["ldd", str(program)], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listed)]


def _copy_stripped(source: Path, target: Path) -> None:
    shutil.copy(source, target)
    subprocess.run(["strip", "--strip-unneeded", str(target)], check=True, timeout=60)
    target.chmod(0o755)


def _add_kernel(found: kernel.Kernel, folder: Path) -> None:
    """As `kernel.find` looks for it."""
    boot = folder / "root" / "boot"
    boot.mkdir(parents=True)
    shutil.copy(found.image, boot)
    version = found.image.name.removeprefix("vmlinuz-")
    modules = folder / "root" / "lib" / "modules" / version / "kernel"
    modules.mkdir(parents=True)
    for path in found.modules:
        shutil.copy(path, modules)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.bundle", description=__doc__)
    parser.add_argument("archive", type=Path)
    target = parser.parse_args().archive
    try:
        make(target)
    except (MissingError, OSError, subprocess.CalledProcessError) as problem:
        print(f"no bundle: {problem}", file=sys.stderr)
        return 1
    print(f"{target}: {target.stat().st_size >> 20} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
