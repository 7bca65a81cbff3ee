"""The guest package as distributions have them: .deb for dpkg, .rpm for rpm.

Made by dpkg-deb and rpmbuild, so on a machine that has these. What is in them, and what they do
when they are installed and removed, is the same (templates/guest).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpupool import __version__
from gpupool.guest.package import (
    PACKAGE,
    TEMPLATES,
    Entry,
    PackageError,
    entries,
    find_libraries,
    make,
)

KINDS = ("tar", "deb", "rpm")
NAME = "gpupool-guest"
UNIT = "usr/lib/systemd/system/gpupool-guest-agent.service"
_BEGINNING_S = 1577836800  # 2020: the same content makes the same package
_TIMEOUT_S = 300
_TOOLS = {
    "dpkg-deb": "Debian: dpkg; others: dpkg or dpkg-dev",
    "rpmbuild": "Debian: rpm; Fedora and its kin: rpm-build",
}


def kind_of(target: Path) -> str:
    """By the name of the file."""
    return next((kind for kind in ("deb", "rpm") if target.suffix == f".{kind}"), "tar")


def make_kind(kind: str, target: Path, libraries: Path | None = None) -> Path:
    """Makes a package of that kind; which folder its libraries are of. Raises PackageError and
    OSError.
    """
    if kind == "tar":
        return make(target, libraries)
    folder = libraries or find_libraries(PACKAGE)
    content = entries(folder, TEMPLATES / "gpupool-guest-agent.service.j2", UNIT)
    with tempfile.TemporaryDirectory(prefix="gpupool-package-") as name:
        place = Path(name)
        root = place / "root"
        _lay_out(root, content)
        if kind == "deb":
            _make_deb(place, root, content, target)
        else:
            _make_rpm(place, root, content, target)
    return folder


def _lay_out(root: Path, content: Sequence[Entry]) -> None:
    root.mkdir(mode=0o755)
    for entry in content:
        path = root / entry.name
        for folder in reversed(path.relative_to(root).parents):
            (root / folder).mkdir(exist_ok=True)
            (root / folder).chmod(0o755)
        if entry.link:
            path.symlink_to(entry.link)
            continue
        path.write_bytes(entry.data)
        path.chmod(entry.mode)
    for path in (root, *root.rglob("*")):
        os.utime(path, (_BEGINNING_S, _BEGINNING_S), follow_symlinks=False)


def _make_deb(place: Path, root: Path, content: Sequence[Entry], target: Path) -> None:
    _need("dpkg-deb")
    control = root / "DEBIAN"
    control.mkdir(mode=0o755)
    kib = sum(len(entry.data) for entry in content) >> 10
    (control / "control").write_text(_filled("deb-control", version=__version__, kib=str(kib)))
    for script in ("deb-postinst", "deb-prerm", "deb-postrm"):
        path = control / script.removeprefix("deb-")
        path.write_text(_filled(script, **_scripts()))
        path.chmod(0o755)
    built = place / "built.deb"
    # xz: dpkg before 1.21.18 does not know zstd.
    _run("dpkg-deb", "-Zxz", "--root-owner-group", "--build", str(root), str(built))
    shutil.move(built, target)


def _make_rpm(place: Path, root: Path, content: Sequence[Entry], target: Path) -> None:
    _need("rpmbuild")
    files = "\n".join(f"/{entry.name}" for entry in content)
    # Folders of other packages are not ours.
    folders = [f"%dir /opt/{NAME}", f"%dir /opt/{NAME}/lib"]
    spec = place / "package.spec"
    spec.write_text(
        _filled(
            "rpm-spec",
            version=__version__,
            root=str(root),
            files="\n".join([*folders, files]),
            **_scripts(),
        )
    )
    _run(
        *("rpmbuild", "-bb", "--target", "x86_64", "--define", f"_topdir {place}/rpm"),
        *("--define", f"_rpmdir {place}/built", "--define", "_rpmfilename built.rpm"),
        *("--define", f"_dbpath {place}/db", str(spec)),
    )
    shutil.move(place / "built" / "built.rpm", target)


def _scripts() -> dict[str, str]:
    names = ("package-installed", "package-leaving", "package-left")
    return {name.removeprefix("package-"): _filled(name) for name in names}


def _filled(name: str, **values: str) -> str:
    text = (TEMPLATES / f"{name}.j2").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"{{{{ {key} }}}}", value.rstrip("\n"))
    return text


def _need(tool: str) -> None:
    if shutil.which(tool) is None:
        raise PackageError(f"{tool} is missing here ({_TOOLS[tool]})")


def _run(*words: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 (found on the path)
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(_BEGINNING_S), "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise PackageError(f"{words[0]} did not end within {_TIMEOUT_S} s") from error
    if done.returncode:
        raise PackageError(f"{words[0]} failed: {done.stderr.strip()[-2000:]}")
