"""Where the C++ parts are: the guest runtime, the worker, the renderer, the arbiter, the end of
TLS, the software GPU.

Two layouts, the same files: the installed package (`gpupool/native/...`, see install() in
CMakeLists.txt) and CMake's build folder. GPUPOOL_NATIVE_DIR names a folder of either layout and
then nothing else is looked at.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# part -> path in the installed layout, path in the build layout
_LAYOUT = {
    "guest_library": ("guest/libcuda.so.1", "lib/guest/libcuda.so.1"),
    "worker": ("libexec/gpupool-worker", "libexec/gpupool-worker"),
    "renderer": ("libexec/gpupool-renderer", "libexec/gpupool-renderer"),
    "opengl": ("guest/gpupool-opengl", "lib/guest/gpupool-opengl"),
    "tls": ("libexec/gpupool-tls", "libexec/gpupool-tls"),
    "arbiter": ("libexec/gpupool-arbiter", "libexec/gpupool-arbiter"),
    "relay": ("libexec/gpupool-vsock", "libexec/gpupool-vsock"),
    "software_gpu": ("host/libgpupool-softgpu.so", "lib/host/libgpupool-softgpu.so"),
}


@dataclass(frozen=True, slots=True)
class NativeFiles:
    """Absolute paths; None for a part that is not there."""

    root: Path  # where was looked
    guest_library: Path | None
    worker: Path | None
    renderer: Path | None  # of OpenGL; not built where virglrenderer's headers are missing
    opengl: Path | None  # what programs' OpenGL dials (guest/opengl)
    tls: Path | None
    arbiter: Path | None
    relay: Path | None  # of virtual machines (hostd/vsock)
    software_gpu: Path | None

    @property
    def guest_dir(self) -> Path | None:
        """What goes first into LD_LIBRARY_PATH."""
        return self.guest_library.parent if self.guest_library else None

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the parts that every host needs and that are not there."""
        needed = (part for part in _LAYOUT if part not in ("relay", "renderer", "opengl"))
        return tuple(part.replace("_", " ") for part in needed if getattr(self, part) is None)


def locate(environment: Mapping[str, str] = os.environ) -> NativeFiles:
    """Looks where GPUPOOL_NATIVE_DIR says, else in the package, else in the checkout's `build`
    folder.
    """
    named = environment.get("GPUPOOL_NATIVE_DIR", "")
    package = Path(__file__).absolute().parents[2]
    roots = (
        [Path(named).absolute()]
        if named
        else [package / "native", package.parent / "build" / "native"]
    )
    found = [_look(root) for root in roots]
    # The first root with a worker; a half-built one only if there is no better.
    return next((files for files in found if files.worker), found[0])


def _look(root: Path) -> NativeFiles:
    parts: dict[str, Path | None] = {}
    for part, places in _LAYOUT.items():
        parts[part] = next((root / place for place in places if (root / place).is_file()), None)
    return NativeFiles(root=root, **parts)
