"""A wheel of the checkout from what is built already: the packages and files of the real one (both
read pyproject.toml and CMake's install()), in a second instead of minutes.

Its guest libraries are this machine's, not those for old systems, and no compiler was asked:
tests/test_wheel.py makes the real one.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tree import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NEVER = {"__pycache__", ".mypy_cache", ".ruff_cache"}


def pack(native: Path, folder: Path) -> Path:
    """The wheel, in this folder. `native`: CMake's build folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    version = project["project"]["version"]
    wheel = folder / f"gpupool-{version}-py3-none-linux_x86_64.whl"
    listed = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
        for name, content, mode in _files(project, native, folder / "installed"):
            entry = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            entry.external_attr = (0o100000 | mode) << 16
            archive.writestr(entry, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            listed.append(f"{name},sha256={digest.decode()},{len(content)}")
        record = f"gpupool-{version}.dist-info/RECORD"
        archive.writestr(record, "\n".join([*listed, f"{record},,", ""]))
    return wheel


def _files(project: dict[str, Any], native: Path, prefix: Path) -> Iterator[tuple[str, bytes, int]]:
    settings = project["tool"]["scikit-build"]["wheel"]
    for target, source in settings["packages"].items():
        for path in sorted((ROOT / source).rglob("*")):
            name = f"{target}/{path.relative_to(ROOT / source)}"
            wanted = path.is_file() and not _NEVER & set(path.parts)
            if wanted and not any(_matches(name, each) for each in settings["exclude"]):
                yield name, path.read_bytes(), path.stat().st_mode & 0o777
    for path in sorted(_installed(native, prefix).rglob("*")):
        if path.is_file():
            yield str(path.relative_to(prefix)), path.read_bytes(), path.stat().st_mode & 0o777
    info = f"gpupool-{project['project']['version']}.dist-info"
    yield f"{info}/METADATA", _metadata(project["project"]).encode(), 0o644
    tags = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: false\n"
    yield f"{info}/WHEEL", (tags + "Tag: py3-none-linux_x86_64\n").encode(), 0o644
    scripts = project["project"]["scripts"].items()
    entries = "".join(f"{name} = {target}\n" for name, target in scripts)
    yield f"{info}/entry_points.txt", f"[console_scripts]\n{entries}".encode(), 0o644


def _matches(name: str, pattern: str) -> bool:
    if pattern.endswith("/**"):
        return name.startswith(pattern.removesuffix("**"))
    return fnmatch.fnmatchcase(name, pattern.replace("**/", "*/"))


def _installed(native: Path, prefix: Path) -> Path:
    tool = Path(sys.executable).parent / "cmake"
    cmake = str(tool) if tool.exists() else shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is missing: pip install --group build")
    done = subprocess.run(
        [cmake, "--install", native, "--prefix", prefix],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return prefix


def _metadata(project: dict[str, Any]) -> str:
    lines = ["Metadata-Version: 2.1", "Name: gpupool", f"Version: {project['version']}"]
    lines += [f"Requires-Python: {project['requires-python']}"]
    lines += [f"Requires-Dist: {each}" for each in project["dependencies"]]
    for extra, needed in project["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        for each in needed:
            name, separator, marker = each.partition(";")
            both = f"({marker.strip()}) and " if separator else ""
            lines.append(f"Requires-Dist: {name}; {both}extra == '{extra}'")
    return "\n".join([*lines, ""])
