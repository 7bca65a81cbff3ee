"""The CDI file of a Kata device: what its container gets, and the hooks that tell hostd of it.

The format is `hostd/adapters/cdi.py`'s. The hooks run on the host, as root, whenever a container
with this device begins or ends; Kata's two runtimes run different ones (kata_hooks/gpupool-kata).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import gpupool
from gpupool.cli import cdi_edits
from gpupool.hostd.adapters import cdi
from gpupool.hostd.core.kata import KIND
from gpupool.hostd.core.vm import HOST_CID, SESSION_PORT

DEFAULT_FOLDER = Path("/etc/cdi")
ADMIN_SOCKET = "/run/gpupool/admin.sock"
_PYTHON = "/usr/bin/python3"
_INSIDE = "/run/gpupool"  # where the container finds its token
_BEGIN = ("createRuntime", "createContainer")
_TIMEOUT_S = 10
_ENDPOINT = f"GPUPOOL_ENDPOINT=vsock://{HOST_CID}:{SESSION_PORT}"
# The device of the guest image's own specification. Kata's agent takes no other names than "all"
# and numbers from VISIBLE_CDI_DEVICES (src/agent/src/device/mod.rs).
GUEST_KIND = "gpupool.dev/vgpu"
GUEST_NAME = "all"


def in_guest(folder: Path, files: Collection[str] = ()) -> dict[str, Any]:
    """The specification for a guest image that has the libraries in that folder, and these files
    of OpenGL's.
    """
    return {
        "cdiVersion": cdi.VERSION,
        "kind": GUEST_KIND,
        "devices": [
            {
                "name": GUEST_NAME,
                "containerEdits": {
                    "env": [_ENDPOINT],
                    "mounts": cdi_edits.libraries(folder, files),
                },
            }
        ],
    }


def path(folder: Path, name: str) -> Path:
    """Its file."""
    return folder / f"{KIND.replace('/', '-')}_{name}.json"


def specification(
    name: str, token_folder: str, guest_dir: Path | None, admin_socket: str = ADMIN_SOCKET
) -> dict[str, Any]:
    """The content of the file. `guest_dir`: the libraries, on this host; None: those in the guest
    image, whose own CDI specification mounts them.
    """
    hook = str(Path(gpupool.__file__).parent / "kata_hooks" / "gpupool-kata")
    environment = [
        _ENDPOINT,
        f"GPUPOOL_TOKEN_FILE={_INSIDE}/token",
    ]
    mounts = [] if guest_dir is None else cdi_edits.libraries(guest_dir)
    if guest_dir is None:
        environment.append(f"VISIBLE_CDI_DEVICES={GUEST_KIND}={GUEST_NAME}")
    mounts.append(
        {
            "hostPath": token_folder,
            "containerPath": _INSIDE,
            "options": [*cdi_edits.READ_ONLY, "noexec"],
        }
    )

    def run(when: str, what: str) -> dict[str, Any]:
        one: dict[str, Any] = {
            "hookName": when,
            "path": _PYTHON,
            "args": ["gpupool-kata", "-IS", hook, what, name],
            "timeout": _TIMEOUT_S,
        }
        if admin_socket != ADMIN_SOCKET:
            one["env"] = [f"GPUPOOL_ADMIN_SOCKET={admin_socket}"]
        return one

    hooks = [*(run(when, "begin") for when in _BEGIN), run("poststop", "end")]
    edits = {"env": environment, "mounts": mounts, "hooks": hooks}
    return {
        "cdiVersion": cdi.VERSION,
        "kind": KIND,
        "devices": [{"name": name, "containerEdits": edits}],
    }
