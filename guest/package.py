"""The guest package: all that a virtual machine needs, as one archive to unpack at its root.

`gpupool vm package gpupool-guest.tar.gz` on the host; docs/vms.md has the rest. In the guest it
is /opt/gpupool-guest with the libraries and the agent (a zipapp), and a systemd unit. Packages for
dpkg and rpm are made of the same (distribution.py).
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FOLDER = "opt/gpupool-guest"
UNIT = "etc/systemd/system/gpupool-guest-agent.service"
LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")
# With their modes; a package without them has no OpenGL.
OPENGL = {"gpupool-opengl": 0o755, "libEGL_gpupool.so": 0o644, "10_gpupool.json": 0o644}
PACKAGE = Path(__file__).absolute().parents[1]
TEMPLATES = PACKAGE / "templates" / "guest"
_TIME = (2020, 1, 1, 0, 0, 0)  # the same content makes the same archive
_SHEBANG = b"#!/usr/bin/env python3\n"


class PackageError(Exception):
    """It cannot be made; the text says what is missing."""


@dataclass(frozen=True)
class Entry:
    """A file of the package, or a link."""

    name: str  # below the root
    data: bytes = b""
    mode: int = 0o644
    link: str = ""  # where it points to


def entries(libraries: Path, template: Path, unit: str = UNIT) -> list[Entry]:
    """All that a guest needs, with the libraries of a folder; `unit`: where systemd's file goes.
    Raises PackageError and OSError.
    """
    found = _libraries(libraries)
    text = template.read_text(encoding="utf-8").replace("{{ folder }}", f"/{FOLDER}")
    return [*found, Entry(f"{FOLDER}/agent", agent(), 0o755), Entry(unit, text.encode())]


def write(target: Path, content: Iterable[Entry]) -> None:
    """Makes an archive of it. Raises OSError."""
    with tarfile.open(target, "w:gz") as archive:
        for entry in content:
            header = tarfile.TarInfo(entry.name)
            header.size, header.mode = len(entry.data), entry.mode
            if entry.link:
                header.type, header.linkname = tarfile.SYMTYPE, entry.link
            archive.addfile(header, io.BytesIO(entry.data))


def kata_entries(libraries: Path, specification: str, template: Path) -> list[Entry]:
    """For a guest image of Kata's: the libraries, and a CDI specification where Kata's agent finds
    it. Raises PackageError and OSError.
    """
    name, path = "gpupool.dev-vgpu.json", f"{FOLDER}/gpupool.dev-vgpu.json"
    text = template.read_text(encoding="utf-8")
    for key, value in (("name", name), ("path", path)):
        text = text.replace(f"{{{{ {key} }}}}", value)
    return [
        *_libraries(libraries),
        Entry(path, specification.encode()),
        Entry("usr/lib/tmpfiles.d/gpupool-kata.conf", text.encode()),
    ]


def agent() -> bytes:
    """The agent as one file that Python runs."""
    package = Path(__file__).parent / "agent"
    buffer = io.BytesIO(_SHEBANG)
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, text in _sources(package):
            archive.writestr(zipfile.ZipInfo(name, _TIME), text, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _sources(package: Path) -> Iterable[tuple[str, str]]:
    yield "gpupool/__init__.py", ""
    yield "gpupool/guest/__init__.py", ""
    for path in sorted(package.glob("*.py")):
        yield f"gpupool/guest/agent/{path.name}", path.read_text(encoding="utf-8")
    yield "__main__.py", (package / "__main__.py").read_text(encoding="utf-8")


def _libraries(folder: Path) -> list[Entry]:
    missing = [name for name in LIBRARIES if not (folder / name).is_file()]
    if missing:
        raise PackageError(f"{folder} has no {' and no '.join(missing)}")
    found = []
    for name in LIBRARIES:
        found.append(Entry(f"{FOLDER}/lib/{name}", (folder / name).read_bytes()))
        found.append(Entry(f"{FOLDER}/lib/{name.removesuffix('.1')}", mode=0o777, link=name))
    for name, mode in OPENGL.items():
        if (folder / name).is_file():
            found.append(Entry(f"{FOLDER}/lib/{name}", (folder / name).read_bytes(), mode))
    return found


def make(target: Path, libraries: Path | None = None) -> Path:
    """Makes the archive, with the libraries of that folder or of the gpupool that this is; which
    folder it was. Raises PackageError and OSError.
    """
    folder = libraries or find_libraries(PACKAGE)
    write(target, entries(folder, TEMPLATES / "gpupool-guest-agent.service.j2"))
    return folder


def make_kata(target: Path, specification: str, libraries: Path) -> None:
    """The same for a guest image of Kata's."""
    template = PACKAGE / "templates" / "kata" / "tmpfiles.conf.j2"
    write(target, kata_entries(libraries, specification, template))


def find_libraries(package: Path) -> Path:
    """The guest libraries of an installed gpupool or of a checkout, those for old systems first.
    Raises PackageError.
    """
    folders = [
        package / "native" / "guest",
        package.parent / "build" / "native" / "lib" / "portable",
        package.parent / "build" / "native" / "lib" / "guest",
    ]
    for folder in folders:
        if all((folder / name).is_file() for name in LIBRARIES):
            return folder
    raise PackageError("the guest libraries are not built: ./run build")
