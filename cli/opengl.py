"""OpenGL of the program that `gpupool run` runs: the relay that Mesa dials, and the variables that
make Mesa dial it (docs/opengl.md).

Mesa's own driver virpipe is what the program uses; nothing of gpupool's is loaded into it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from gpupool.cli.relay_process import RelayProcess
from gpupool.hostd.adapters import native_files

CHOICES = ("auto", "yes", "direct", "no")
_DRIVER = b"virpipe"
_NAMED = b"VTEST_SOCKET_NAME"  # in Mesa's driver: it dials where we say
_VENDOR = Path("/usr/share/glvnd/egl_vendor.d/50_mesa.json")
# Where distributions keep Mesa's drivers, newest layout first.
_PLACES = (
    "/usr/lib/*-linux-gnu/libgallium-*.so",
    "/usr/lib64/libgallium-*.so",
    "/usr/lib/libgallium-*.so",
    "/usr/lib/*-linux-gnu/dri/swrast_dri.so",
    "/usr/lib64/dri/swrast_dri.so",
    "/usr/lib/dri/swrast_dri.so",
)


class OpenGlError(RuntimeError):
    """There is no OpenGL. The text says why and what to do."""


def drivers(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Mesa's drivers on this machine, as far as they are where they usually are."""
    named = environment.get("LIBGL_DRIVERS_PATH", "")
    found = [Path(one) / "swrast_dri.so" for one in named.split(":") if one]
    for place in _PLACES:
        found += sorted(Path("/").glob(place.removeprefix("/")))
    return [path for path in found if path.is_file()]


def has(path: Path, *words: bytes) -> bool:
    """Whether these bytes are in a driver."""
    with (
        contextlib.suppress(OSError, ValueError),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return all(content.find(word) >= 0 for word in words)
    return False


def may_mount() -> bool:
    """Whether a name can be made private without a user namespace: CAP_SYS_ADMIN (bit 21)."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        line = next(one for one in status.splitlines() if one.startswith("CapEff:"))
        return bool(int(line.split()[1], 16) >> 21 & 1)
    return False


def wanted(choice: str, environment: Mapping[str, str] = os.environ) -> tuple[bool, bool]:
    """Whether there shall be OpenGL, and whether the fixed name must be made private for it.

    `auto` is yes where it costs the program nothing: Mesa is there, and knows VTEST_SOCKET_NAME, or
    we may mount. Raises OpenGlError for a `yes` that cannot be.
    """
    if choice == "no":
        return False, False
    if choice == "direct":  # windows are virgl's, where it can be had
        choice = "auto"
    relay = native_files.locate(environment).opengl
    if choice == "auto" and (relay is None or environment.get("GALLIUM_DRIVER")):
        return False, False
    if relay is None:
        raise OpenGlError("gpupool-opengl was not found; run `gpupool doctor`")
    found = next((path for path in drivers(environment) if has(path, _DRIVER)), None)
    if found is None:
        if choice == "auto":
            return False, False
        raise OpenGlError(
            "no Mesa with its driver virpipe was found here (Debian, Ubuntu: apt install "
            "libgl1-mesa-dri libegl1); see docs/opengl.md"
        )
    private = not has(found, _NAMED)
    return (choice == "yes" or not private or may_mount()), private


def direct(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What has GLVND ask our own vendor of EGL first, and Mesa's for displays that are not ours:
    those of windows. Raises OpenGlError.
    """
    folder = native_files.locate(environment).guest_dir
    vendor = None if folder is None else folder / "10_gpupool.json"
    if vendor is None or not vendor.is_file():
        raise OpenGlError("10_gpupool.json was not found; run `gpupool doctor`")
    vendors = [str(vendor), *([str(_VENDOR)] if _VENDOR.is_file() else [])]
    return {"__EGL_VENDOR_LIBRARY_FILENAMES": ":".join(vendors)}


class Relay(RelayProcess):
    """A running gpupool-opengl for one program; it ends with the `with` block."""

    def __init__(self, variables: Mapping[str, str], choice: str, *, private: bool) -> None:
        """Starts it with these variables: where the host is, and which vGPU. Raises OpenGlError.

        `choice`, `private`: what `wanted` was asked and has answered.
        """
        program = native_files.locate(variables).opengl
        if program is None:
            raise OpenGlError("gpupool-opengl was not found; run `gpupool doctor`")
        self._program = program
        self._private = private
        self._optional = "no" if choice == "yes" else "yes"
        self._folder = Path(tempfile.mkdtemp(prefix="gpupool-opengl-"))
        self._socket = self._folder / "socket"
        command = [str(program), "serve", "--socket", str(self._socket)]
        super().__init__([*command, "--parent", str(os.getpid())], variables)
        if not self.said:
            raise OpenGlError("gpupool-opengl did not start; its own line, if any, is above")

    def variables(self, given: Mapping[str, str]) -> dict[str, str]:
        """For the program: Mesa and no other OpenGL, virpipe, and where it dials."""
        chosen = {
            "GALLIUM_DRIVER": "virpipe",
            "LIBGL_ALWAYS_SOFTWARE": "1",  # no driver of the kernel's, whatever devices are there
            "VTEST_SOCKET_NAME": str(self._socket),
            "__GLX_VENDOR_LIBRARY_NAME": "mesa",
        }
        if _VENDOR.is_file() and "__EGL_VENDOR_LIBRARY_DIRS" not in given:
            chosen["__EGL_VENDOR_LIBRARY_FILENAMES"] = str(_VENDOR)
        own = ("GALLIUM_DRIVER", "VTEST_SOCKET_NAME")  # the rest is the user's, if named
        return {key: value for key, value in chosen.items() if key in own or not given.get(key)}

    def words(self, words: Iterable[str]) -> list[str]:
        """The program, so that older Mesa dials the relay, too."""
        words = list(words)
        if not self._private or shutil.which(words[0]) is None:  # who runs it says so
            return words
        command = [str(self._program), "exec", "--optional", self._optional]
        return [*command, "--socket", str(self._socket), "--", *words]

    def end(self) -> None:
        """With its folder."""
        super().end()
        shutil.rmtree(self._folder, ignore_errors=True)
