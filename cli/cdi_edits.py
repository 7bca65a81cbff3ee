"""What CDI devices of ours have in common: the guest's libraries and OpenGL's relay, as mounts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_LIBRARIES = ("libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "libnvidia-ml.so")
# Where the loaders of Debian's and Fedora's kin look without being told, and what images made for
# NVIDIA's runtime have in LD_LIBRARY_PATH. So nothing of the image's environment is replaced.
_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/nvidia/lib64")
READ_ONLY = ("ro", "nosuid", "nodev", "bind")


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
    program = (guest_dir / "gpupool-opengl").resolve()
    if not elsewhere and program.is_file():  # docs/opengl.md
        options = list(READ_ONLY)
        place = "/usr/bin/gpupool-opengl"
        mounts.append({"hostPath": str(program), "containerPath": place, "options": options})
    return mounts
