"""The guest package: all that a virtual machine needs, as one archive to unpack at its root.

`gpupool vm package gpupool-guest.tar.gz` on the host; docs/vms.md has the rest. In the guest it
is /opt/gpupool-guest with the libraries and the agent (a zipapp), and a systemd unit.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

FOLDER = "opt/gpupool-guest"
UNIT = "etc/systemd/system/gpupool-guest-agent.service"
LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")
OPENGL = "gpupool-opengl"
_TIME = (2020, 1, 1, 0, 0, 0)  # the same content makes the same archive
_SHEBANG = b"#!/usr/bin/env python3\n"


class PackageError(Exception):
    """It cannot be made; the text says what is missing."""


def write(target: Path, libraries: Path, template: Path) -> None:
    """Makes the archive, with the libraries of a folder. Raises PackageError and OSError."""
    _check(libraries)
    unit = template.read_text(encoding="utf-8").replace("{{ folder }}", f"/{FOLDER}")
    with tarfile.open(target, "w:gz") as archive:
        _add_libraries(archive, libraries)
        if (libraries / OPENGL).is_file():  # a package without it has no OpenGL
            _add(archive, f"{FOLDER}/lib/{OPENGL}", (libraries / OPENGL).read_bytes(), 0o755)
        _add(archive, f"{FOLDER}/agent", agent(), 0o755)
        _add(archive, UNIT, unit.encode(), 0o644)


def write_kata(target: Path, libraries: Path, specification: str, template: Path) -> None:
    """Makes the archive for a guest image of Kata's: the libraries, and a CDI specification where
    Kata's agent finds it. Raises PackageError and OSError.
    """
    _check(libraries)
    name, path = "gpupool.dev-vgpu.json", f"{FOLDER}/gpupool.dev-vgpu.json"
    text = template.read_text(encoding="utf-8")
    for key, value in (("name", name), ("path", path)):
        text = text.replace(f"{{{{ {key} }}}}", value)
    with tarfile.open(target, "w:gz") as archive:
        _add_libraries(archive, libraries)
        _add(archive, path, specification.encode(), 0o644)
        _add(archive, "usr/lib/tmpfiles.d/gpupool-kata.conf", text.encode(), 0o644)


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


def _add_libraries(archive: tarfile.TarFile, libraries: Path) -> None:
    for name in LIBRARIES:
        _add(archive, f"{FOLDER}/lib/{name}", (libraries / name).read_bytes(), 0o644)
        link = tarfile.TarInfo(f"{FOLDER}/lib/{name.removesuffix('.1')}")
        link.type, link.linkname = tarfile.SYMTYPE, name
        archive.addfile(link)


def _check(libraries: Path) -> None:
    missing = [name for name in LIBRARIES if not (libraries / name).is_file()]
    if missing:
        raise PackageError(f"{libraries} has no {' and no '.join(missing)}")


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def make(target: Path, libraries: Path | None = None) -> Path:
    """Makes the archive, with the libraries of that folder or of the gpupool that this is; which
    folder it was. Raises PackageError and OSError.
    """
    package = Path(__file__).absolute().parents[1]
    template = package / "templates" / "guest" / "gpupool-guest-agent.service.j2"
    folder = libraries or find_libraries(package)
    write(target, folder, template)
    return folder


def make_kata(target: Path, specification: str, libraries: Path | None = None) -> Path:
    """The same for a guest image of Kata's."""
    package = Path(__file__).absolute().parents[1]
    folder = libraries or find_libraries(package)
    template = package / "templates" / "kata" / "tmpfiles.conf.j2"
    write_kata(target, folder, specification, template)
    return folder


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
