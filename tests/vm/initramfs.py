"""The guest's first root: busybox, a few modules and init.sh, as a cpio archive.

No tool is needed for it. The format is "newc" of the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.vm.kernel import Kernel, MissingError

INIT = Path(__file__).parent / "init.sh"


def build(kernel: Kernel, target: Path) -> None:
    """Writes the archive. Raises MissingError where there is no static busybox."""
    parts = [_entry(name, 0o040755, b"") for name in ("bin", "dev", "proc", "modules", "new")]
    parts.append(_entry("bin/busybox", 0o100755, busybox().read_bytes()))
    parts.append(_entry("init", 0o100755, INIT.read_bytes()))
    for path in kernel.modules:
        parts.append(_entry(f"modules/{path.name}", 0o100644, path.read_bytes()))
    order = "".join(f"{path.name}\n" for path in kernel.modules)
    parts.append(_entry("modules/order", 0o100644, order.encode()))
    parts.append(_entry("TRAILER!!!", 0, b""))
    target.write_bytes(b"".join(parts))


def busybox() -> Path:
    """A busybox that needs no libraries."""
    found = shutil.which("busybox")
    if found is None:
        raise MissingError("busybox is missing (Debian: busybox-static)")
    if b"ld-linux" in Path(found).read_bytes()[:4096]:
        raise MissingError(f"{found} needs libraries; install busybox-static")
    return Path(found)


def _entry(name: str, mode: int, content: bytes) -> bytes:
    """One file: a header of 13 hexadecimal fields, name and content, each padded to 4 bytes."""
    text = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(text), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + text
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
