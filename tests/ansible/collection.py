"""Ansible finds a collection by the folder that it is in: ansible_collections/NAMESPACE/NAME."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.tree import ROOT


def environment() -> dict[str, str]:
    """For ansible's programs: they find the checkout's collection and write nothing into ~."""
    place = ROOT / "build" / "collections" / "ansible_collections" / "gpupool" / "gpupool"
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to("../../../../ansible")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{kept.get('PATH', '')}",
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build" / "collections"),
        "ANSIBLE_HOME": str(ROOT / "build" / "ansible"),
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PIPELINING": "True",  # half the ssh round trips of each task
    }
