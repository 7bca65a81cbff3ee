"""The bench of OpenGL: that it measures and compares, not what."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpupool.bench.opengl_report import Figures, Row, as_json, as_markdown
from tests.conftest import native_dir


def test_a_wrong_picture_stands_out() -> None:
    rates = {"native": [100.0, 110.0, 90.0], "shm": [50.0, 55.0, 36.0]}
    frames = Row("draw", "frames/s", 1.0, rates, {"native": "a", "shm": "b"})
    times = Row("read", "us", 1.0, rates, {"native": "a", "shm": "a"})
    figures = Figures({"cpu": "some"}, ["native", "shm", "tcp"], [frames, times])
    text = as_markdown(figures)
    assert "| draw | frames/s | 100 (20 %) | 50 (38 %) **0.50** WRONG | - |" in text
    assert "| read | us | 1e+04 (20 %) | 2e+04 (38 %) **2.00** | - |" in text
    assert figures.failures() == ["draw: the result of shm is not native's"]
    assert as_json(figures)["rows"][1]["ratio_to_native"] == {"shm": 2.0}


def test_it_measures_every_mode(tmp_path: Path) -> None:
    native = native_dir()
    if not (native / "libexec" / "gpupool-renderer").exists():
        pytest.skip(f"{native} has no gpupool-renderer: ./run build, with libvirglrenderer-dev")
    if importlib.util.find_spec("moderngl") is None:
        pytest.skip("the Python package moderngl is not installed")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "gpupool.bench.opengl", "--gpu", "software", "--rounds", "2"),
            *("--seconds", "0.05", "--modes", "native,reference,shm,tcp", "--out", str(tmp_path)),
            *("--only", "draw_read_512,clear_read_16"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "GPUPOOL_NATIVE_DIR": str(native)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "opengl.json").read_text())
    assert [row["name"] for row in found["rows"]] == [
        "draw and read back 512x512",
        "clear and read 16x16",
    ]
    for row in found["rows"]:
        # The stock server is there where the Debian package virgl-server is.
        assert set(row["median"]) >= {"native", "shm", "tcp"}
        assert ("reference" in row["median"]) == ("reference" not in found["skipped"])
        assert len(set(row["digests"].values())) == 1
    assert found["says"]["shm"]["renderer"].startswith("virgl")
