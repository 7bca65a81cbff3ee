"""`gpupool node`: the machines that a controller knows."""

from __future__ import annotations

from gpupool.cli import layout
from gpupool.cli.asking import EXITS, Asking, verb

DESCRIPTION = "The machines with GPUs that have registered with the controller."
APP = layout.group("node", DESCRIPTION, EXITS)


@verb(
    APP,
    "list",
    "show all of them",
    "Shows the nodes. One that has been silent for 30 s is lost.",
    """\
examples:
  gpupool node list --controller https://gpupool.example.org
  gpupool node list --json | jq -r '.nodes[] | select(.state == "lost") | .name'
""",
)
def list_all(asking: Asking) -> int:
    """Shows them."""
    found = asking.central.nodes()
    if asking.as_json:
        asking.answer(nodes=found)
        return 0
    rows = [
        [
            one.name,
            one.state,
            "cordoned" if one.cordoned else "-",
            "-" if one.gpus is None else one.gpus,
            one.version or "-",
            one.endpoint or "-",
            one.heard or "-",
            ",".join(f"{key}={value}" for key, value in sorted(one.labels.items())) or "-",
        ]
        for one in found
    ]
    header = ("NAME", "STATE", "PLACING", "GPUS", "VERSION", "ENDPOINT", "HEARD", "LABELS")
    asking.show(header, rows, "no nodes; `controller` in hostd.toml makes a hostd register")
    return 0
