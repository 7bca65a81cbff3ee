"""`gpupool devices`: the GPUs that can be given out."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from gpupool.cli import admin, table
from gpupool.cli.parameters import AdminSocket, Json

DESCRIPTION = """\
Shows the GPUs that a running hostd gives out. Without a hostd, looks at this machine itself: NVIDIA
cards through NVML, else the software GPU.
"""
EPILOG = """\
exit codes: 0 there is a GPU; 1 there is none (the reasons are on stderr)
examples:
  gpupool devices
  gpupool devices --json | jq -r '.gpus[].uuid'
"""


def main(as_json: Json = False, admin_socket: AdminSocket = None) -> int:
    """Prints the list."""
    answers, problems = admin.ask_all(admin_socket, "devices")
    if answers:
        found = {"from": "hostd", **answers[0]}
    elif admin_socket:
        print(f"gpupool devices: {problems[0]}", file=sys.stderr)
        return 1
    else:
        found = {"from": "machine", **_look()}
    if as_json:
        print(json.dumps({**found, "problems": problems}, indent=2))
    else:
        _show(found, problems)
    return 0 if found["gpus"] else 1


def _look() -> dict[str, Any]:
    """The same discovery that hostd does, in this process."""
    from gpupool.hostd import config, private
    from gpupool.hostd.main import real_gpus

    chosen = config.private(config.parse({}), private.directory(), private.gpu_choice(), 0)
    inventory = real_gpus(chosen).discover()
    return {
        "gpus": [asdict(gpu) for gpu in inventory.gpus],
        "library": inventory.library,
        "driver_version": inventory.driver_version,
        "notes": list(inventory.notes),
    }


def _show(found: dict[str, Any], problems: list[str]) -> None:
    rows = [
        [
            gpu["index"],
            gpu["name"],
            f"{gpu['memory_mib']} MiB",
            gpu["compute_capability"],
            gpu["source"],
            gpu["uuid"],
        ]
        for gpu in found["gpus"]
    ]
    if rows:
        table.show(["GPU", "NAME", "MEMORY", "CC", "SOURCE", "UUID"], rows)
    for line in [*found["notes"], *problems]:
        print(f"note: {line}", file=sys.stderr)
