"""Test suites of others, fetched where they are not installed: `python -m tests.opengl.suites`.

moderngl's own tests come with its source on PyPI, piglit's shader tests with Debian's package, of
which only some files are unpacked (all of it is 2 GB). Both are kept in build/opengl.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

from tests.tree import ROOT

PLACE = ROOT / "build" / "opengl"
PIGLIT = PLACE / "piglit"
MODERNGL = PLACE / "moderngl"
# Folders of tests/spec, and what runs them.
SPECIFICATIONS = (
    *("glsl-1.30", "glsl-1.50", "glsl-3.30", "arb_compute_shader"),
    *("arb_shader_storage_buffer_object", "arb_gpu_shader5", "arb_tessellation_shader"),
    "arb_shader_image_load_store",
)
_IN_PACKAGE = "./usr/lib/x86_64-linux-gnu/piglit"
_TIMEOUT_S = 300


class MissingError(RuntimeError):
    """It cannot be had here. The text says why."""


def moderngl_tests() -> Path:
    """The folder of moderngl's tests, for the version that is installed. Raises MissingError."""
    version = metadata.version("moderngl")
    folder = MODERNGL / version
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:all:")
        _run(*pip, "--no-build-isolation", "-d", name, f"moderngl=={version}")
        archive = next(place.glob("moderngl-*.tar.gz"))
        with tarfile.open(archive) as opened:
            wanted = [each for each in opened.getmembers() if "/tests/" in each.name]
            for each in wanted:
                opened.extract(each, place)
        found = next(place.glob("moderngl-*/tests"), None)
        if found is None:
            raise MissingError(f"moderngl {version} comes without its tests")
        MODERNGL.mkdir(parents=True, exist_ok=True)
        shutil.move(found, folder)
    return folder


def piglit() -> Path:
    """The folder with piglit's bin, lib and tests. Raises MissingError."""
    if PIGLIT.exists():
        return PIGLIT
    if shutil.which("apt-get") is None:
        raise MissingError("piglit comes as Debian's package, and there is no apt-get")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        _run("apt-get", "download", "-q", "piglit", folder=place)
        _run("dpkg-deb", "--fsys-tarfile", str(next(place.glob("piglit_*.deb"))), out=place / "all")
        with tarfile.open(place / "all") as opened:
            for each in opened:
                if _is_wanted(each.name.removeprefix(_IN_PACKAGE + "/")):
                    opened.extract(each, place)
        PLACE.mkdir(parents=True, exist_ok=True)
        shutil.move(place / _IN_PACKAGE, PIGLIT)
    return PIGLIT


def _is_wanted(name: str) -> bool:
    if name.startswith("tests/spec/"):
        return name.split("/")[2] in SPECIFICATIONS
    return name == "bin/shader_runner" or name.startswith("lib/")


def _run(*command: str, folder: Path | None = None, out: Path | None = None) -> None:
    try:
        if out is None:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, check=False, timeout=_TIMEOUT_S
            )
        else:
            with out.open("wb") as target:
                done = subprocess.run(
                    command, stdout=target, stderr=subprocess.PIPE, check=False, timeout=_TIMEOUT_S
                )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{command[0]}: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise MissingError(f"{' '.join(command[:3])}: {said[-1] if said else done.returncode}")


def main() -> int:
    """Fetches both."""
    try:
        print(moderngl_tests(), piglit(), sep="\n")
    except MissingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
