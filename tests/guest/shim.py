"""Our libcuda.so.1 in a process of its own, for what it answers without a host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, native_dir


def shim_path() -> Path:
    """The library under test; skips where it is not built."""
    path = native_dir() / "lib" / "guest" / "libcuda.so.1"
    if not path.exists():
        pytest.skip(f"{path} is not built: run ./run build")
    return path


def run_without_host(text: str, *arguments: str, timeout_s: float = 60) -> str:
    """Runs Python text that finds the shim's path in argv[1]; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", text, str(shim_path()), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        cwd=ROOT,
        env=dict(os.environ, GPUPOOL_ENDPOINT="unix:/nonexistent/gpupool.sock"),
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
