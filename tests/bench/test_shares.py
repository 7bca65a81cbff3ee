"""The bench of compute shares on the software GPU: that it measures, not what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpupool.bench.host import HostError
from gpupool.bench.shares import Client, rates
from gpupool.bench.shares_report import Figures, Row, as_markdown
from tests.conftest import native_dir


def test_what_is_not_kept_stands_out() -> None:
    rows = [Row("small, hard", 25, 24.5, 23, 27, 74.0), Row("small, hard", 25, 20.0, 23, 27)]
    rows.append(Row("gemm, hard", 50, 57.2, 48, 52, 48.0, 1.1, 49.0))  # a card that ran faster
    rows.append(Row("gemm, hard", 50, 50.0, 48, 52, 48.0, 1.1, 55.0))
    text = as_markdown(Figures(rows, {"p99, us": 12.0}, ["gemm: no torch"]))
    assert "| small, hard | 25 | 24.50 | -0.50 | 23 to 27 | 74.00 | 1.00 |  | kept |" in text
    assert "| small, hard | 25 | 20.00 | -5.00 | 23 to 27 |  | 1.00 |  | **NOT** |" in text
    assert (
        "| gemm, hard | 50 | 57.20 | +7.20 | 48 to 52 | 48.00 | 1.10 | 49.00 | kept, by account |"
        in text
    )
    assert "| 48.00 | 1.10 | 55.00 | **NOT** |" in text
    assert "| p99, us | 12.0 |" in text
    assert text.endswith("gemm: no torch")


def test_it_measures_shares_of_real_clients(tmp_path: Path) -> None:
    native = native_dir()
    if not (native / "lib" / "bench").exists() and not (native / "bench").exists():
        pytest.skip(f"{native} has no bench: run ./run build")
    out = tmp_path / "shares.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "gpupool.cli", "bench", "--shares", "--gpu", "software"),
            *("--window-s", "0.5", "--kinds", "graphs,two_clients", "--percents", "10,50"),
            *("--policies", "hard", "--extras", "latency", "--json", str(out)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "GPUPOOL_NATIVE_DIR": str(native)},
    )
    # Whether shares are kept depends on the processors here; that all was measured does not.
    assert done.returncode in (0, 1), done.stderr
    assert out.exists(), done.stderr  # a traceback's exit code is 1, too
    found = json.loads(out.read_text())
    assert not found["notes"], (found["notes"], done.stderr)
    assert [row["quota"] for row in found["rows"]] == [10, 50, 10, 50]
    assert all(row["achieved"] > 0 for row in found["rows"])
    assert len(found["others"]) == 6


class Slow(Client):
    """One that says how far it is from a list."""

    def __init__(self, done: list[int]) -> None:
        self.kind = "slow"
        self._told = [{"done": count, "at_s": float(second)} for second, count in enumerate(done)]

    def ask(self) -> dict[str, float]:
        """The next, and the last again and again."""
        return self._told.pop(0) if len(self._told) > 1 else self._told[0]


def test_a_window_goes_on_until_everybody_has_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rates([Slow([1, 1, 1, 7]), Slow([0, 3, 4, 9])], 0.001) == [2.0, 3.0]
    monkeypatch.setattr("gpupool.bench.shares._ANSWER_S", 0.01)
    with pytest.raises(HostError, match="got nothing done"):
        rates([Slow([5, 6]), Slow([1, 1])], 0.001)
