"""Every workload of the bench on an NVIDIA GPU, small: it runs, and gives native's results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, native_dir

pytestmark = pytest.mark.gpu


@pytest.mark.timeout(900)
def test_every_workload_gives_natives_results(framework_python: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "gpupool.cli", "bench", "--gpu", "nvidia", "--small"),
            *("--modes", "native,shm,tcp", "--rounds", "2", "--seconds", "0.01"),
            *("--python", framework_python, "--out", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=880,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GPUPOOL_NATIVE_DIR": str(native_dir())},
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    skipped = {row["name"] for row in rows if row["skipped"]}
    assert all(name.startswith(("jax", "cupy")) for name in skipped), skipped
