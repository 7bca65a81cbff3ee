"""Questions about memory to the NVIDIA driver and to a vGPU on it: the answers must be the same."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.gpu

# What differs on purpose.
EXPECTED = {
    "registered.mapped",  # registered memory is not mapped into the vGPU
    "device.handle_types",
    "pinned.handle_types",
}


def answers(*before: str) -> dict[str, Any]:
    """Runs the probe, natively or behind a command."""
    done = subprocess.run(
        [*before, sys.executable, "-m", "tests.gpu.memory_probe"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_same_answers_as_the_driver() -> None:
    """Codes, values and how many bytes a query writes."""
    native = answers()
    forwarded = answers(sys.executable, "-m", "gpupool.cli", "run", "--")
    different = {
        key: (value, forwarded.get(key))
        for key, value in native.items()
        if forwarded.get(key) != value and key not in EXPECTED
    }
    text = "\n".join(f"{key}: driver {a}, vGPU {b}" for key, (a, b) in different.items())
    assert not different, text
