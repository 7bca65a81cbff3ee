"""What CDI devices of ours have in common: the guest's libraries, OpenGL's too, as mounts."""

from __future__ import annotations

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


def libraries(guest_dir: Path, *, elsewhere: bool = False) -> list[dict[str, Any]]:
    """Mounts of the libraries in that folder, wherever loaders look. `elsewhere`: the folder is not
    this machine's.
    """
    mounts = [
        {
            "hostPath": str(guest_dir / library if elsewhere else (guest_dir / library).resolve()),
            "containerPath": f"{folder}/{library}",
            "options": list(READ_ONLY),
        }
        for folder in _FOLDERS
        for library in _LIBRARIES
    ]
    return mounts if elsewhere else mounts + _opengl(guest_dir)


def _opengl(guest_dir: Path) -> list[dict[str, Any]]:
    """Mounts for both paths of OpenGL (docs/opengl.md), as far as that folder has them: the relay,
    and gpupool's EGL with the description by which GLVND finds it.
    """
    places = {
        "gpupool-opengl": ["/usr/bin/gpupool-opengl"],
        EGL: [f"{folder}/{EGL}" for folder in _FOLDERS],
        "10_gpupool.json": [VENDOR],
    }
    return [
        {
            "hostPath": str((guest_dir / name).resolve()),
            "containerPath": place,
            "options": list(READ_ONLY),
        }
        for name, inside in places.items()
        if (guest_dir / name).is_file()
        for place in inside
    ]
