"""What CDI devices of ours have in common: the guest's libraries, OpenGL's too, as mounts."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

_LIBRARIES = ("libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "libnvidia-ml.so")
# Where the loaders of Debian's and Fedora's kin look without being told, and what images made for
# NVIDIA's runtime have in LD_LIBRARY_PATH. So nothing of the image's environment is replaced.
_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/nvidia/lib64")
READ_ONLY = ("ro", "nosuid", "nodev", "bind")
EGL = "libEGL_gpupool.so"
# Where containers have the description of gpupool's EGL, and Mesa's, where images have one.
VENDOR = "/usr/share/gpupool/10_gpupool.json"
DIRECT = f"__EGL_VENDOR_LIBRARY_FILENAMES={VENDOR}:/usr/share/glvnd/egl_vendor.d/50_mesa.json"


OPENGL = {  # files of both paths (docs/opengl.md), and where containers have them
    "gpupool-opengl": ("/usr/bin/gpupool-opengl",),
    EGL: tuple(f"{folder}/{EGL}" for folder in _FOLDERS),
    "10_gpupool.json": (VENDOR,),
}


def libraries(guest_dir: Path, elsewhere: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Mounts of the libraries in that folder, wherever loaders look, and of as much of OPENGL as
    it has. `elsewhere`: the folder is not this machine's, and these are the files that it has.
    """
    places = {name: tuple(f"{folder}/{name}" for folder in _FOLDERS) for name in _LIBRARIES}
    for name, inside in OPENGL.items():
        if (guest_dir / name).is_file() if elsewhere is None else name in elsewhere:
            places[name] = inside
    return [
        {
            "hostPath": str(
                (guest_dir / name).resolve() if elsewhere is None else guest_dir / name
            ),
            "containerPath": place,
            "options": list(READ_ONLY),
        }
        for name, inside in places.items()
        for place in inside
    ]
