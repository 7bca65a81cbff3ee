"""A real hostd on the machine's NVIDIA GPU, and the Python that has the frameworks."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Host, end_host, make_host


@pytest.fixture(scope="session")
def nvidia_host() -> Iterator[Host]:
    """One hostd on the NVIDIA GPU for all tests here."""
    if not Path("/dev/nvidiactl").exists():
        pytest.skip("no NVIDIA GPU: /dev/nvidiactl is missing")
    with tempfile.TemporaryDirectory(prefix="gpupool-gpu-") as name:
        one = make_host(Path(name), gpu="nvidia")
        yield one
        end_host(one)


@pytest.fixture(scope="session")
def framework_python() -> str:
    """A Python with PyTorch: GPUPOOL_FRAMEWORK_PYTHON, or python3 of the path."""
    python = os.environ.get("GPUPOOL_FRAMEWORK_PYTHON") or shutil.which("python3") or "python3"
    found = subprocess.run(
        [python, "-c", "import torch, torchvision"], capture_output=True, check=False, timeout=120
    )
    if found.returncode != 0:
        pytest.skip(f"{python} has no PyTorch and torchvision; set GPUPOOL_FRAMEWORK_PYTHON")
    return python
