"""A virtual machine for the mode `window`, without the machine: the file that a hypervisor would
show its guest as a device, the guest agent's socket that hands it out, and a way to the VM's socket
of vsock.
"""

from __future__ import annotations

import contextlib
import json
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpupool.guest.agent.log import Log
from gpupool.guest.agent.window import Window

WINDOW_MIB = 4096  # a session has an eighth
PORT = 9177
_TIMEOUT_S = 60


def settings(folder: Path) -> str:
    """Of hostd, as TOML."""
    return f'[vm]\ndir = "{folder}/vms"\nrelay = "no"\n'


def variables(folder: Path) -> dict[str, str]:
    """Of a program in it, besides the device that stands in for vsock."""
    return {
        "GPUPOOL_ENDPOINT": f"vsock://2:{PORT}",
        "VSOCK_FOLDER": str(folder / "vm"),
        "GPUPOOL_WINDOW_SOCKET": str(folder / "vm" / "window.sock"),
    }


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[None]:
    """The VM, for as long as the block. `folder`: hostd's."""
    domain = str(uuid.uuid4())
    _ask(folder, "vm_allow", uuid=domain, name="bench")
    made = _ask(folder, "vm_prepare", uuid=domain, name="bench", window_mib=WINDOW_MIB, vgpus=[{}])
    agent = Window(Log(), folder / "vm" / "window.sock", Path(made["window"]))
    try:
        agent.follow(WINDOW_MIB << 20)
        (folder / "vm" / f"port-{PORT}").symlink_to(Path(made["folder"]) / f"vsock_{PORT}")
        yield
    finally:
        agent.end()
        _ask(folder, "vm_release", uuid=domain)


def _ask(folder: Path, method: str, **more: object) -> dict[str, Any]:
    """hostd's answer. Raises RuntimeError for a refusal."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(str(folder / "admin.sock"))
        connection.sendall(json.dumps({"method": method, **more}).encode() + b"\n")
        with connection.makefile("rb") as answers:
            answer = json.loads(answers.readline())
    if not answer["ok"]:
        raise RuntimeError(f"{method}: {answer['error']}")
    result: dict[str, Any] = answer["result"]
    return result
